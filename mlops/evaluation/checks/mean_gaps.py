"""Gaps of means between groups: of scores, of their errors, of losses; what fairness asks of a predicted number.

Every ordered pair of groups is tested by Welch's t: one pair at alpha over the number of ordered pairs shows a
violation (Bonferroni), every pair at alpha shows that there is none (intersection–union).
Source: Welch, Biometrika 34 (1947). Leaves to others: gaps of rates (fairness.py).
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops.evaluation.checks.quality import favourable_scores, row_losses
from mlops.evaluation.fairness_rules import MeanGapRule
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings

Floats = NDArray[np.float64]


def check_mean_gap(rule: MeanGapRule, hearing: Hearing) -> Findings:
    """The largest gap between group means, within each control group if the rule names some."""
    values = _values(rule, hearing)
    groups, controls = hearing.test.group_by(rule.by), hearing.test.group_by(rule.within)
    claims = []
    for control in np.unique(controls):
        mask = controls == control
        name = " × ".join(rule.by) + (f" within {control}" if rule.within else "")
        cells = {str(group): values[mask & (groups == group)] for group in np.unique(groups[mask])}
        claims.append(_claim(name, cells, rule=rule, alpha=hearing.policy.alpha, n=int(mask.sum())))
    table = [
        {"group": str(group), "mean": float(values[groups == group].mean()), "n": int((groups == group).sum())}
        for group in np.unique(groups)
    ]
    return Findings(tuple(claims), {"means_by_group": table})


def _values(rule: MeanGapRule, hearing: Hearing) -> Floats:
    if rule.of == "loss":
        return row_losses(hearing)
    scores = favourable_scores(hearing)
    return scores if rule.of == "score" else (hearing.test.labels == hearing.favourable) - scores


def _claim(name: str, cells: dict[str, Floats], *, rule: MeanGapRule, alpha: float, n: int) -> Claim:
    small = [f"{group}: n={values.size}" for group, values in cells.items() if values.size < rule.minimum_denominator]
    usable = {group: values for group, values in cells.items() if values.size >= rule.minimum_denominator}
    if len(cells) < 2:
        text = f"all rows are of one group ({next(iter(cells))}): nothing to compare"
        return Claim(name, "at most", rule.maximum, n=n, evidence=None, code="single-group", text=text)
    if len(usable) < 2:
        text = f"fewer than two groups have {rule.minimum_denominator} rows to compare"
        return Claim(name, "at most", rule.maximum, n=n, evidence=None, code="not-estimable", text=text)
    evidence, worst = assess_mean_gap(usable, maximum=rule.maximum, alpha=alpha)
    text = f"largest between {worst}" + (f"; too small to test: {', '.join(small)}" if small else "")
    code = "groups-too-small" if small else ""
    return Claim(name, "at most", rule.maximum, n=n, evidence=evidence, code=code, text=text)


def assess_mean_gap(cells: dict[str, Floats], *, maximum: float, alpha: float) -> tuple[Evidence, str]:
    """Evidence on "no two means differ by more than `maximum`", and the pair with the largest difference in words."""
    names = list(permutations(cells, 2))
    count = np.array([cells[name].size for pair in names for name in pair]).reshape(-1, 2)
    mean = np.array([cells[name].mean() for pair in names for name in pair]).reshape(-1, 2)
    share = np.array([cells[name].var(ddof=1) for pair in names for name in pair]).reshape(-1, 2) / count
    error = np.sqrt(np.maximum(share.sum(axis=1), 1e-24))
    freedom = error**4 / np.maximum((share**2 / (count - 1)).sum(axis=1), 1e-48)
    distance = mean[:, 0] - mean[:, 1]
    above = stats.t.sf((distance - maximum) / error, freedom)
    below = stats.t.cdf((distance - maximum) / error, freedom)
    corrected = stats.t.ppf(1 - alpha / len(names), freedom) * error
    plain = stats.t.ppf(1 - alpha, freedom) * error
    worst = names[int(distance.argmax())]
    evidence = Evidence(
        estimate=float(distance.max()),
        lower=max(0.0, float((distance - corrected).max())),
        upper=float((distance + plain).max()),
        p_good=float(below.max()),
        p_bad=min(1.0, float(above.min()) * len(names)),
    )
    first, second = (f"{name} {cells[name].mean():.3f}" for name in worst)
    return evidence, f"{first} and {second}"
