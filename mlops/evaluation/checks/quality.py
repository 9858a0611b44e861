"""Loss, accuracy, AUC and calibration, overall and by group. Leaves to others: comparing with a champion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import means, rates, roc
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import AccuracyRule, AucRule, CalibrationRule, LossRule
from mlops.evaluation.rule import SlicedRule
from mlops.evaluation.verdicts import Claim, Direction, Findings


def check_loss(rule: LossRule, hearing: Hearing) -> Findings:
    """Mean log loss of each group with a t-bound."""
    losses, alpha = row_losses(hearing), hearing.policy.alpha
    claims = []
    for name, mask in slices(rule, hearing):
        values = losses[mask]
        if values.size < means.SMALLEST_SAMPLE:
            claims.append(too_small(name, n=values.size, direction="at most", threshold=rule.maximum))
            continue
        evidence = means.assess_mean_at_most(values, maximum=rule.maximum, alpha=alpha)
        needed = means.plan_rows_for_mean(values, threshold=rule.maximum, alpha=alpha)
        claims.append(
            Claim(name, "at most", rule.maximum, n=values.size, evidence=evidence, rows_needed=needed or None)
        )
    return Findings(tuple(claims))


def check_accuracy(rule: AccuracyRule, hearing: Hearing) -> Findings:
    """Share of right answers in each group with exact bounds."""
    is_right = hearing.test_answers.classes == hearing.test.labels
    claims = tuple(
        claim_at_least(name, is_right[mask], minimum=rule.minimum, alpha=hearing.policy.alpha)
        for name, mask in slices(rule, hearing)
    )
    return Findings(claims, {} if rule.target is None else {"target": rule.target})


def check_auc(rule: AucRule, hearing: Hearing) -> Findings:
    """Area under the ROC curve of the favourable class, DeLong's variance on the logit scale."""
    scores = favourable_scores(hearing)
    is_positive = hearing.test.labels == hearing.favourable
    claims = []
    for name, mask in slices(rule, hearing):
        positives, negatives = scores[mask & is_positive], scores[mask & ~is_positive]
        if min(positives.size, negatives.size) < 10:
            claims.append(too_small(name, n=positives.size, direction="at least", threshold=rule.minimum))
            continue
        evidence = roc.assess_area(
            positives, negatives, threshold=rule.minimum, alpha=hearing.policy.alpha, is_minimum=True
        )
        claims.append(Claim(name, "at least", rule.minimum, n=int(mask.sum()), evidence=evidence))
    return Findings(tuple(claims))


def check_calibration(rule: CalibrationRule, hearing: Hearing) -> Findings:
    """Observed rate against mean prediction in equally filled bins, exact bounds in each bin.

    The claim of a group is that no bin is off by more than the maximum: every bin must show it (intersection–union),
    and one bin that shows the contrary at alpha over twice the number of bins refutes it (Bonferroni).
    """
    scores, is_positive = favourable_scores(hearing), hearing.test.labels == hearing.favourable
    claims, curves = [], {}
    for name, mask in slices(rule, hearing):
        if int(mask.sum()) < 20 * rule.bins:
            claims.append(too_small(name, n=int(mask.sum()), direction="at most", threshold=rule.maximum))
            continue
        evidence, points = _assess_bins(scores[mask], is_positive[mask], rule=rule, alpha=hearing.policy.alpha)
        claims.append(Claim(name, "at most", rule.maximum, n=int(mask.sum()), evidence=evidence))
        curves[name] = points
    return Findings(tuple(claims), {"calibration": curves})


def _assess_bins(
    scores: NDArray[np.float64], is_positive: NDArray[np.bool_], *, rule: CalibrationRule, alpha: float
) -> tuple[rates.Evidence, list[dict[str, float]]]:
    found, points = [], []
    for chosen in np.array_split(np.argsort(scores, kind="stable"), rule.bins):
        n, hits, mean = chosen.size, int(is_positive[chosen].sum()), float(scores[chosen].mean())
        high = rates.assess_rate_at_most(hits, n, maximum=min(1.0, mean + rule.maximum), alpha=alpha)
        low = rates.assess_rate_at_least(hits, n, minimum=max(0.0, mean - rule.maximum), alpha=alpha)
        distance = abs(hits / n - mean)
        found.append(
            rates.Evidence(
                estimate=distance,
                lower=max(0.0, high.lower - mean, mean - high.upper),
                upper=max(high.upper - mean, mean - high.lower),
                p_good=max(_p(high.p_good, mean + rule.maximum < 1), _p(low.p_good, mean > rule.maximum)),
                p_bad=min(1.0, 2 * min(high.p_bad, low.p_bad)),
            )
        )
        points.append(
            {"predicted": mean, "observed": hits / n, "lower": high.lower, "upper": high.upper, "n": float(n)}
        )
    worst = max(found, key=lambda evidence: evidence.estimate)
    return rates.Evidence(
        estimate=worst.estimate,
        lower=max(evidence.lower for evidence in found) if worst.p_bad <= alpha / rule.bins else 0.0,
        upper=max(evidence.upper for evidence in found),
        p_good=max(evidence.p_good for evidence in found),
        p_bad=min(1.0, rule.bins * min(evidence.p_bad for evidence in found)),
    ), points


def _p(value: float, is_possible: bool) -> float:
    """A side that cannot be violated needs no evidence."""
    return value if is_possible else 0.0


def row_losses(hearing: Hearing) -> NDArray[np.float64]:
    """Log loss of each test row; probabilities below 1e-7 count as 1e-7."""
    return log_losses(hearing.test_answers.probabilities, hearing.test.labels)


def log_losses(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log loss per row."""
    chosen = probabilities[np.arange(labels.size), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(chosen, 1e-7))
    return losses


def favourable_scores(hearing: Hearing) -> NDArray[np.float64]:
    """Probability of the favourable class of each test row."""
    return hearing.test_answers.probabilities[:, hearing.favourable].astype(np.float64)


def slices(rule: SlicedRule, hearing: Hearing) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and mask of each group that the rule asks about."""
    names = hearing.test.group_by(rule.by)
    for name in np.unique(names):
        yield str(name), names == name


def claim_at_least(name: str, is_good: NDArray[np.bool_], *, minimum: float, alpha: float) -> Claim:
    """The claim that the rate of `is_good` is at least `minimum`."""
    hits, n = int(is_good.sum()), int(is_good.size)
    evidence = rates.assess_rate_at_least(hits, n, minimum=minimum, alpha=alpha)
    is_open = evidence.lower < minimum < evidence.upper
    needed = rates.plan_rows_for_rate(hits, n, threshold=minimum, alpha=alpha) if is_open else None
    return Claim(name, "at least", minimum, n=n, evidence=evidence, rows_needed=needed)


def too_small(name: str, *, n: Any, direction: Direction, threshold: float) -> Claim:
    """A group with too few rows for any bound."""
    return Claim(
        name, direction, threshold, n=int(n), evidence=None, code="too-few-rows", text=f"{n} rows give no bound"
    )
