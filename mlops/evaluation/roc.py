"""Ranking: area under the ROC curve with DeLong's variance, and the true positive rate at a small false positive rate.

Leaves to others: which scores are ranked (the model's in checks/quality.py, an attacker's in checks/privacy.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops.evaluation.rates import Evidence

Floats = NDArray[np.float64]


def placements(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """DeLong's components: for each positive the share of negatives below it, and the reverse; ties count half."""
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    among_positives, among_negatives = stats.rankdata(positives), stats.rankdata(negatives)
    m, n = positives.size, negatives.size
    return (ranks[:m] - among_positives) / n, 1.0 - (ranks[m:] - among_negatives) / m


def area_with_error(positives: Floats, negatives: Floats) -> tuple[float, float]:
    """AUC and its standard error.

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988); fast form of Sun & Xu, IEEE SPL 21 (2014).

    Raises:
        ValueError: Fewer than two positives or negatives.
    """
    if min(positives.size, negatives.size) < 2:
        raise ValueError("an area needs two positives and two negatives at least")
    first, second = placements(positives, negatives)
    variance = first.var(ddof=1) / positives.size + second.var(ddof=1) / negatives.size
    return float(first.mean()), math.sqrt(float(variance))


def assess_area(positives: Floats, negatives: Floats, *, threshold: float, alpha: float, is_minimum: bool) -> Evidence:
    """Evidence on "the AUC is at least (`is_minimum`) or at most `threshold`", on the logit scale.

    A perfect ranking has no variance: its error is then taken from one row more that is ranked wrongly.
    """
    area, error = area_with_error(positives, negatives)
    floor = 1.0 / (min(positives.size, negatives.size) + 1)
    inside = min(max(area, floor / 2), 1 - floor / 2)
    error = max(error, 0.0 if 0.0 < area < 1.0 else floor)
    slope = inside * (1 - inside)
    if error == 0.0:
        error = floor
    scale = error / slope
    center = math.log(inside / (1 - inside))
    quantile = float(stats.norm.ppf(1 - alpha))
    limit = min(max(threshold, 1e-9), 1 - 1e-9)
    z = (center - math.log(limit / (1 - limit))) / scale
    above, below = float(stats.norm.sf(z)), float(stats.norm.cdf(z))
    return Evidence(
        estimate=area,
        lower=_logistic(center - quantile * scale),
        upper=_logistic(center + quantile * scale),
        p_good=above if is_minimum else below,
        p_bad=below if is_minimum else above,
    )


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def threshold_at(negatives: Floats, *, false_positive_rate: float) -> float:
    """Score above which at most `false_positive_rate` of `negatives` lie (ties stay below)."""
    allowed = math.floor(false_positive_rate * negatives.size)
    return float(np.sort(negatives)[negatives.size - 1 - allowed])


def curve(positives: Floats, negatives: Floats, *, points: int = 60) -> list[tuple[float, float]]:
    """Points (false positive rate, true positive rate) on a logarithmic grid, for plotting."""
    rates = np.unique(np.concatenate([np.logspace(-3.5, 0, points), [1.0]]))
    ordered = np.sort(negatives)[::-1]
    found = []
    for rate in rates:
        cut = ordered[min(math.floor(rate * negatives.size), negatives.size - 1)]
        found.append((float(rate), float((positives > cut).mean()) if rate < 1 else 1.0))
    return found
