"""Smallest ratio of a rate between groups (the "four fifths" way of asking), by pairwise score tests.

Each ordered pair is tested with the score statistic of Farrington & Manning (Statistics in Medicine 9, 1990) for
ratios, rates fitted under the null in closed form. As with gaps: one pair at alpha over the number of ordered pairs
shows a violation, every pair at alpha shows that there is none. Leaves to others: differences (gaps.py), which rows
count (checks/fairness.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # what scipy.stats.norm calls, a hundred times faster for single numbers

from mlops.evaluation.gaps import GapEvidence, RateTable, bisect
from mlops.evaluation.rates import Evidence

Floats = NDArray[np.float64]


def ratio_statistic(x1: Floats, n1: Floats, x2: Floats, n2: Floats, *, ratio: float) -> Floats:
    """Score statistic of `p1 = ratio * p2`: large speaks for a larger true ratio."""
    a = (n1 + n2) * ratio
    b = -(n1 * ratio + x1 + n2 + x2 * ratio)
    c = x1 + x2
    second = (-b - np.sqrt(np.maximum(b * b - 4 * a * c, 0.0))) / (2 * a)
    second = np.clip(second, 0.0, min(1.0, 1 / ratio))
    first = np.clip(ratio * second, 0.0, 1.0)
    variance = first * (1 - first) / n1 + ratio**2 * second * (1 - second) / n2
    found: Floats = (x1 / n1 - ratio * x2 / n2) / np.sqrt(np.maximum(variance, 1e-12))
    return found


def assess_ratio(
    tables: tuple[RateTable, ...], *, minimum: float, alpha: float, minimum_denominator: int
) -> GapEvidence | None:
    """Evidence on the smallest ratio over all tables; None when none has two groups and an event to compare."""
    pairs, names, too_small = _pairs(tables, minimum_denominator=minimum_denominator)
    if not names:
        return None
    x1, n1, x2, n2 = np.array(pairs, dtype=np.float64).T

    def test(ratio: float) -> tuple[float, float]:
        z = ratio_statistic(x1, n1, x2, n2, ratio=ratio)
        least = float(z.min())
        return float(ndtr(-least)), min(1.0, float(ndtr(least)) * len(z))

    observed = (x1 / n1) / (x2 / n2)
    p_good, p_bad = test(min(max(minimum, 1e-6), 1.0))
    estimate = float(observed.min())
    evidence = Evidence(
        estimate=estimate,
        lower=min(estimate, bisect(lambda value: test(max(value, 1e-6))[0] <= alpha)),
        upper=max(estimate, bisect(lambda value: test(max(value, 1e-6))[1] > alpha)),
        p_good=p_good,
        p_bad=p_bad,
    )
    return GapEvidence(evidence, worst=names[int(observed.argmin())], too_small=too_small, rows_factor=None)


def _pairs(
    tables: tuple[RateTable, ...], *, minimum_denominator: int
) -> tuple[list[tuple[float, ...]], list[str], tuple[str, ...]]:
    pairs: list[tuple[float, ...]] = []
    names: list[str] = []
    too_small: list[str] = []
    for table in tables:
        cells = list(zip(table.groups, table.successes, table.totals, strict=True))
        too_small += [f"{table.rate} of {name}: n={n:g}" for name, _, n in cells if n < minimum_denominator]
        usable = [cell for cell in cells if cell[2] >= minimum_denominator]
        for first, x1, n1 in usable:
            for second, x2, n2 in usable:
                if first != second and x2 > 0:  # a ratio to a rate of zero says nothing
                    pairs.append((x1, n1, x2, n2))
                    names.append(f"{table.rate}: {first} {x1 / n1:.3f} against {second} {x2 / n2:.3f}")
    return pairs, names, tuple(too_small)
