"""Rates of counted events with exact (Clopper–Pearson) bounds. Leaves to others: differences of rates (gaps.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats

LARGEST_FACTOR = 1_000.0
"""Sample-size searches stop at this multiple of the rows at hand: beyond it the answer is of no use to anybody."""


@dataclass(frozen=True)
class Evidence:
    """What a sample says about one requirement; the tests are one-sided and unadjusted."""

    estimate: float
    lower: float
    """Bound that the truth is above with probability 1 - alpha."""
    upper: float
    """Bound that the truth is below with probability 1 - alpha."""
    p_good: float
    """P-value of "the requirement is violated": small means it is shown to hold."""
    p_bad: float
    """P-value of "the requirement holds": small means it is shown to be violated."""


def clopper_pearson(successes: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """One-sided exact bounds of a rate, each at level `alpha` (together an interval of confidence 1 - 2 alpha).

    Source: Clopper & Pearson, Biometrika 26 (1934).

    Raises:
        ValueError: No trials, or more successes than trials.
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a rate")
    lower = 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, trials - successes + 1))
    upper = 1.0 if successes == trials else float(stats.beta.ppf(1 - alpha, successes + 1, trials - successes))
    return lower, upper


def assess_rate_at_least(successes: int, trials: int, *, minimum: float, alpha: float) -> Evidence:
    """Exact binomial evidence on "the rate is at least `minimum`"."""
    lower, upper = clopper_pearson(successes, trials, alpha=alpha)
    return Evidence(
        estimate=successes / trials,
        lower=lower,
        upper=upper,
        p_good=float(stats.binom.sf(successes - 1, trials, minimum)),
        p_bad=float(stats.binom.cdf(successes, trials, minimum)),
    )


def assess_rate_at_most(successes: int, trials: int, *, maximum: float, alpha: float) -> Evidence:
    """Exact binomial evidence on "the rate is at most `maximum`"."""
    lower, upper = clopper_pearson(successes, trials, alpha=alpha)
    return Evidence(
        estimate=successes / trials,
        lower=lower,
        upper=upper,
        p_good=float(stats.binom.cdf(successes, trials, maximum)),
        p_bad=float(stats.binom.sf(successes - 1, trials, maximum)),
    )


def plan_rows_for_rate(successes: int, trials: int, *, threshold: float, alpha: float) -> int | None:
    """Further trials after which the bound would leave `threshold` behind, if the observed rate stayed.

    Returns:
        None when the observed rate is so near the threshold that a thousand times the rows would not decide.
    """
    rate = successes / trials

    def is_decided(factor: float) -> bool:
        scaled = math.ceil(trials * factor)
        lower, upper = clopper_pearson(min(scaled, round(rate * scaled)), scaled, alpha=alpha)
        return lower >= threshold or upper <= threshold

    factor = search_factor(is_decided)
    return None if factor is None else max(0, math.ceil(trials * factor) - trials)


def search_factor(is_decided: Callable[[float], bool]) -> float | None:
    """Smallest multiple of the sample (within 1 %) that decides; None when none up to `LARGEST_FACTOR` does."""
    high = 1.0
    while not is_decided(high):
        high *= 2
        if high > LARGEST_FACTOR:
            return None
    low = high / 2 if high > 1 else 1.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_decided(middle) else (middle, high)
    return high
