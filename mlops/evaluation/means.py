"""Bounds of a mean over rows (a loss), by Student's t. Leaves to others: rates (rates.py), pairs (paired.py)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops.evaluation.rates import Evidence

SMALLEST_SAMPLE = 30
"""Below this many rows the t-interval of a skewed loss is not trusted."""


def assess_mean_at_most(values: NDArray[np.float64], *, maximum: float, alpha: float) -> Evidence:
    """Evidence on "the mean is at most `maximum`".

    Losses are skewed to the right, which makes the plain t too bold below and too timid above; Johnson's correction
    (JASA 73, 1978) for skewness is applied to the statistic.

    Raises:
        ValueError: Fewer than `SMALLEST_SAMPLE` rows, or values that are not finite.
    """
    if values.size < SMALLEST_SAMPLE or not np.isfinite(values).all():
        raise ValueError(f"{values.size} values give no bound of a mean")
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    if error == 0.0:
        is_good = mean <= maximum
        return Evidence(mean, mean, mean, p_good=0.0 if is_good else 1.0, p_bad=1.0 if is_good else 0.0)
    third = float(((values - mean) ** 3).mean())
    # Johnson's shift of the centre: mu3 / (6 s^2 n) (1 + 2 t^2), at t = quantile for bounds and at t observed for tests
    scale = third / (6 * float(values.var(ddof=1)) * values.size)
    quantile = float(stats.t.ppf(1 - alpha, values.size - 1))
    shift = scale * (1 + 2 * quantile**2)
    t = (mean - maximum) / error
    corrected = t + scale * (1 + 2 * min(t * t, 25.0)) / error
    return Evidence(
        estimate=mean,
        lower=mean + shift - quantile * error,
        upper=mean + shift + quantile * error,
        p_good=float(stats.t.cdf(corrected, values.size - 1)),
        p_bad=float(stats.t.sf(corrected, values.size - 1)),
    )


def plan_rows_for_mean(values: NDArray[np.float64], *, threshold: float, alpha: float) -> int | None:
    """Further rows after which the bound would leave `threshold` behind, if the mean stayed; None: out of reach."""
    distance = abs(float(values.mean()) - threshold)
    if distance == 0.0:
        return None
    needed = (float(stats.norm.ppf(1 - alpha)) * float(values.std(ddof=1)) / distance) ** 2
    return None if needed > 1_000 * values.size else max(0, math.ceil(needed) - values.size)
