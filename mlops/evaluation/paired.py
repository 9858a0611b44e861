"""Two models on the same rows: differences with bounds that use the pairing. Leaves to others: one model (rates.py)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops.evaluation.rates import Evidence
from mlops.evaluation.roc import placements

Floats = NDArray[np.float64]
DRAWN_AT_ONCE = 200_000
"""Values of a block of resamples: a loop over many small ones is slow, one large block does not fit the cache."""
RESAMPLES = 2000


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p-value of "gains and losses are equally likely" (McNemar, Psychometrika 12, 1947)."""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def assess_paired_rates(gained: int, lost: int, n: int, *, margin: float, alpha: float) -> Evidence:
    """Evidence on "the new rate is not lower than the old one by `margin` or more", of `new - old`.

    Tango's score test for paired proportions (Statistics in Medicine 17, 1998); bounds by inverting it.

    Args:
        gained: Rows right now and wrong before.
        lost: Rows wrong now and right before.
        n: All rows.
        margin: Non-inferiority margin, positive.
        alpha: Of each bound.
    """
    z = _tango(gained, lost, n, difference=-margin)
    limit = float(stats.norm.ppf(1 - alpha))
    return Evidence(
        estimate=(gained - lost) / n,
        lower=_invert(gained, lost, n, z=limit),
        upper=_invert(gained, lost, n, z=-limit),
        p_good=float(stats.norm.sf(z)),
        p_bad=float(stats.norm.cdf(z)),
    )


def _tango(gained: int, lost: int, n: int, *, difference: float) -> float:
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    fitted = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * fitted + difference * (1 - difference))
    distance = gained - lost - n * difference
    if variance <= 1e-12:
        return math.copysign(math.inf, distance) if abs(distance) > 1e-12 else 0.0
    return distance / math.sqrt(variance)


def _invert(gained: int, lost: int, n: int, *, z: float) -> float:
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tango(gained, lost, n, difference=middle) > z else (low, middle)
    return (low + high) / 2


def assess_paired_mean(differences: Floats, *, margin: float, alpha: float, seed: int) -> Evidence:
    """Evidence on "the mean of `new - old` is at most `margin`", by the studentised bootstrap of pairs.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 12.

    Raises:
        ValueError: Fewer than 30 pairs, or not finite.
    """
    n = differences.size
    if n < 30 or not np.isfinite(differences).all():
        raise ValueError(f"{n} pairs give no bound")
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return Evidence(mean, mean, mean, p_good=float(mean > margin), p_bad=float(mean <= margin))
    rng, pivots = np.random.default_rng(seed), np.empty(RESAMPLES)
    at_once = max(1, DRAWN_AT_ONCE // n)
    for first in range(0, RESAMPLES, at_once):
        drawn = differences[rng.integers(0, n, (min(at_once, RESAMPLES - first), n))]
        spread = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        apart = drawn.mean(axis=1) - mean
        pivots[first : first + at_once] = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)
    t = (mean - margin) / error
    return Evidence(
        estimate=mean,
        lower=mean - float(np.quantile(pivots, 1 - alpha)) * error,
        upper=mean - float(np.quantile(pivots, alpha)) * error,
        p_good=(1 + float((pivots <= t).sum())) / (RESAMPLES + 1),
        p_bad=(1 + float((pivots >= t).sum())) / (RESAMPLES + 1),
    )


def assess_paired_areas(
    new: Floats, old: Floats, is_positive: NDArray[np.bool_], *, margin: float, alpha: float
) -> Evidence:
    """Evidence on "the AUC is not lower by `margin` or more", by DeLong's covariance of both areas.

    Raises:
        ValueError: Fewer than two positives or negatives.
    """
    m, n = int(is_positive.sum()), int((~is_positive).sum())
    if min(m, n) < 2:
        raise ValueError("an area needs two positives and two negatives at least")
    parts = [placements(scores[is_positive], scores[~is_positive]) for scores in (new, old)]
    first, second = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
    estimate = float(first.mean())
    error = math.sqrt(float(first.var(ddof=1)) / m + float(second.var(ddof=1)) / n)
    if error == 0.0:
        return Evidence(
            estimate, estimate, estimate, p_good=float(estimate <= -margin), p_bad=float(estimate > -margin)
        )
    z, limit = (estimate + margin) / error, float(stats.norm.ppf(1 - alpha)) * error
    return Evidence(
        estimate=estimate,
        lower=estimate - limit,
        upper=estimate + limit,
        p_good=float(stats.norm.sf(z)),
        p_bad=float(stats.norm.cdf(z)),
    )
