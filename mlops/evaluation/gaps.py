"""Largest difference of a rate between groups, by pairwise score tests: valid for many small groups.

Each ordered pair of groups is tested with the Farrington–Manning score statistic (Statistics in Medicine 9, 1990).
"The gap is too large" needs one pair that shows it at alpha divided by the number of ordered pairs (Bonferroni); so far
out in the tail the normal approximation is too bold for small cells, hence the skewness correction there (Gart & Nam,
Biometrics 46, 1990), where it makes the p-value larger. "The gap is small enough" needs every pair to show it at alpha
(intersection–union, Berger 1982), which needs no correction for the number of pairs.
Leaves to others: which rows count (checks/fairness.py) and the family over all checks (decisions.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mlops.evaluation.rates import Evidence, search_factor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RateTable:
    """One rate (selection, true positive, …) by group."""

    rate: str
    groups: tuple[str, ...]
    successes: tuple[float, ...]
    totals: tuple[float, ...]


@dataclass(frozen=True)
class GapEvidence:
    """Evidence on "no two groups differ by more than the tolerance, in any of the rates"."""

    evidence: Evidence
    worst: str
    """The pair with the largest observed difference, in words."""
    too_small: tuple[str, ...]
    """Cells below the minimum denominator: they are in no test, and while there are any the gap cannot pass."""
    rows_factor: float | None
    """Multiple of the present rows that would decide if the rates stayed; None: not within reason."""


def score_statistic(p1: Floats, n1: Floats, p2: Floats, n2: Floats, *, difference: float | Floats) -> Floats:
    """Farrington–Manning statistic of `p1 - p2 = difference`, made conservative by the Gart–Nam skewness correction.

    Returns:
        Upper-tail z: large speaks for a true difference above `difference`.
    """
    z, skewness = _plain_score(p1, n1, p2, n2, difference=difference)
    return np.minimum(z, _correct_skewness(z, skewness))


def _plain_score(
    p1: Floats, n1: Floats, p2: Floats, n2: Floats, *, difference: float | Floats
) -> tuple[Floats, Floats]:
    """Score statistic and its skewness under the null, with rates fitted under the null (a cubic in closed form)."""
    delta = np.clip(np.asarray(difference, dtype=np.float64), -1 + 1e-9, 1 - 1e-9)
    theta = n2 / n1
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + delta * (theta + 2))
    c = delta**2 + delta * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * delta * (1 + delta)
    v = b**3 / (27 * a**3) - b * c / (6 * a**2) + d / (2 * a)
    u = np.where(v > 0, 1.0, -1.0) * np.sqrt(np.maximum(b**2 / (9 * a**2) - c / (3 * a), 0.0))
    ratio = np.divide(v, u**3, out=np.zeros_like(v), where=u != 0)
    w = (math.pi + np.arccos(np.clip(ratio, -1.0, 1.0))) / 3
    q1 = np.clip(2 * u * np.cos(w) - b / (3 * a), np.maximum(delta, 0.0), np.minimum(1.0, 1.0 + delta))
    q2 = np.clip(q1 - delta, 0.0, 1.0)
    variance = q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2
    third = q1 * (1 - q1) * (1 - 2 * q1) / n1**2 - q2 * (1 - q2) * (1 - 2 * q2) / n2**2
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    return (p1 - p2 - delta) / deviation, third / deviation**3


def _correct_skewness(z: Floats, skewness: Floats) -> Floats:
    """First-order Cornish–Fisher correction, held at its turning point so that a larger z never counts for less."""
    turning = np.divide(3.0, skewness, out=np.full_like(z, np.inf), where=np.abs(skewness) > 1e-9)
    held = np.where(skewness > 0, np.minimum(z, turning), np.maximum(z, turning))
    held = np.where(np.isfinite(held), held, z)
    return held - skewness * (held**2 - 1) / 6


def assess_gap(
    tables: tuple[RateTable, ...], *, tolerance: float, alpha: float, minimum_denominator: int
) -> GapEvidence | None:
    """Evidence on the largest gap over all tables; None when fewer than two groups can be compared in each table."""
    pairs = _Pairs.of(tables, minimum_denominator=minimum_denominator)
    if pairs is None:
        return None
    p_good, p_bad = pairs.test(tolerance)
    lower, upper = pairs.bounds(alpha)
    evidence = Evidence(estimate=pairs.estimate, lower=lower, upper=upper, p_good=p_good, p_bad=p_bad)
    return GapEvidence(
        evidence=evidence,
        worst=pairs.worst,
        too_small=pairs.too_small,
        rows_factor=_plan_factor(tables, tolerance=tolerance, alpha=alpha, minimum_denominator=minimum_denominator),
    )


def _plan_factor(
    tables: tuple[RateTable, ...], *, tolerance: float, alpha: float, minimum_denominator: int
) -> float | None:
    if any(total == 0 for table in tables for total in table.totals):
        return None  # nothing is known about an empty cell's rate

    def is_decided(factor: float) -> bool:
        scaled = tuple(
            RateTable(
                table.rate,
                table.groups,
                tuple(value * factor for value in table.successes),
                tuple(value * factor for value in table.totals),
            )
            for table in tables
        )
        pairs = _Pairs.of(scaled, minimum_denominator=minimum_denominator)
        if pairs is None:
            return False
        p_good, p_bad = pairs.test(tolerance)
        return (p_good <= alpha and not pairs.too_small) or p_bad <= alpha

    return search_factor(is_decided)


@dataclass(frozen=True)
class _Pairs:
    """Every ordered pair of groups of every table, as arrays."""

    p1: Floats
    n1: Floats
    p2: Floats
    n2: Floats
    names: tuple[str, ...]
    too_small: tuple[str, ...]

    @classmethod
    def of(cls, tables: tuple[RateTable, ...], *, minimum_denominator: int) -> _Pairs | None:
        left: list[tuple[float, float, float, float]] = []
        names: list[str] = []
        too_small: list[str] = []
        for table in tables:
            cells = list(zip(table.groups, table.successes, table.totals, strict=True))
            too_small += [
                f"{table.rate} of {name}: n={total:g}" for name, _, total in cells if total < minimum_denominator
            ]
            usable = [cell for cell in cells if cell[2] >= minimum_denominator]
            if len(usable) < 2:
                return None
            for first, x1, n1 in usable:
                for second, x2, n2 in usable:
                    if first != second:
                        left.append((x1 / n1, n1, x2 / n2, n2))
                        names.append(f"{table.rate}: {first} {x1 / n1:.3f} against {second} {x2 / n2:.3f}")
        p1, n1, p2, n2 = np.array(left, dtype=np.float64).T
        return cls(p1=p1, n1=n1, p2=p2, n2=n2, names=tuple(names), too_small=tuple(too_small))

    @property
    def estimate(self) -> float:
        return float(np.max(self.p1 - self.p2))

    @property
    def worst(self) -> str:
        return self.names[int(np.argmax(self.p1 - self.p2))]

    def test(self, tolerance: float) -> tuple[float, float]:
        """`(p_good, p_bad)` of a maximum gap of `tolerance`."""
        above = score_statistic(self.p1, self.n1, self.p2, self.n2, difference=tolerance)
        # "p1 - p2 < tolerance" is "p2 - p1 > -tolerance" with the groups exchanged
        below, _ = _plain_score(self.p2, self.n2, self.p1, self.n1, difference=-tolerance)
        p_bad = min(1.0, float(ndtr(-np.max(above))) * len(self.p1))
        return float(ndtr(-np.min(below))), p_bad

    def bounds(self, alpha: float) -> tuple[float, float]:
        """Bounds of the maximum gap: the tolerances at which the two tests just stop to reject."""
        lower = bisect(lambda value: self.test(value)[1] <= alpha)
        upper = bisect(lambda value: self.test(value)[0] > alpha)
        return min(lower, self.estimate), max(upper, self.estimate)


def bisect(is_true: Callable[[float], bool]) -> float:
    """Where in `[0, 1]` a condition that holds at 0 ceases to hold; 0 when it never does, 1 when it always does."""
    low, high = 0.0, 1.0
    if not is_true(low):
        return low
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_true(middle) else (low, middle)
    return (low + high) / 2
