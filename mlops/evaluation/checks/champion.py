"""Against the version in production, on the same rows: not worse by more than a margin, and few people's answers lost.

Leaves to others: which version that is (the caller passes it) and absolute thresholds (quality.py).
"""

from __future__ import annotations

import numpy as np

from mlops.evaluation import paired
from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.checks.quality import log_losses
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import ChampionRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_champion(rule: ChampionRule, hearing: Hearing) -> Findings:
    """Accuracy (Tango), loss (paired bootstrap) and AUC (DeLong) not worse by the margin; few right answers lost."""
    champion = hearing.champion
    if champion is None:
        return _without_champion(rule, hearing)
    if champion.contract.classes != hearing.classes:
        raise NotEvaluableError("wrong-class-order", "the champion has other classes: answers cannot be compared")
    test, new, alpha = hearing.test, hearing.test_answers, hearing.policy.alpha
    old = champion.answer(test.features)
    is_right, was_right = new.classes == test.labels, old.classes == test.labels
    gained, lost = int((is_right & ~was_right).sum()), int((~is_right & was_right).sum())
    is_positive = test.labels == hearing.favourable
    accuracy = paired.assess_paired_rates(gained, lost, len(test), margin=rule.accuracy_margin, alpha=alpha)
    loss = paired.assess_paired_mean(
        log_losses(new.probabilities, test.labels) - log_losses(old.probabilities, test.labels),
        margin=rule.loss_margin,
        alpha=alpha,
        seed=hearing.seed_of(rule.name),
    )
    area = paired.assess_paired_areas(
        new.probabilities[:, hearing.favourable].astype(np.float64),
        old.probabilities[:, hearing.favourable].astype(np.float64),
        is_positive,
        margin=rule.auc_margin,
        alpha=alpha,
    )
    text = f"{gained:,} rows gained, {lost:,} lost; exact McNemar p = {paired.mcnemar_exact(gained, lost):.3g}"
    claims = [
        Claim("change of accuracy", "at least", -rule.accuracy_margin, n=len(test), evidence=accuracy, text=text),
        Claim("change of loss", "at most", rule.loss_margin, n=len(test), evidence=loss),
        Claim("change of AUC", "at least", -rule.auc_margin, n=len(test), evidence=area),
    ]
    groups = test.group_by(rule.by)
    for name in np.unique(groups):
        is_lost = (~is_right & was_right)[groups == name]
        title = "right answers lost" + (f", {name}" if rule.by else "")
        claims.append(claim_at_most(title, is_lost, maximum=rule.maximum_negative_flips, alpha=alpha))
    return Findings(tuple(claims), {"champion": champion.digest, "gained": gained, "lost": lost})


def _without_champion(rule: ChampionRule, hearing: Hearing) -> Findings:
    if rule.without_champion == "block":
        raise NotEvaluableError("no-champion", "there is no version in production to compare with")
    evidence = Evidence(0.0, 0.0, 0.0, p_good=0.0, p_bad=1.0)
    text = "there is no version in production yet, which the policy allows for the first release"
    return Findings(
        (Claim("first release", "at least", -rule.accuracy_margin, n=len(hearing.test), evidence=evidence, text=text),)
    )
