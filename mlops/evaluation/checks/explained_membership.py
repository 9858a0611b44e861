"""Membership inference from explanations, for products that serve them.

The attacker sees what `mlops model explain` tells of a row: what each input added to the log-odds of the favourable
answer, by the same method, draws and comparison rows, and the log-odds themselves. The variance of an explanation is a
score by itself (Shokri, Strobel & Zick, AIES 2021); a forest on all numbers, given half of the truth, is the stronger
one.
Leaves to others: computing attributions (attributions.py), membership from answers alone (membership.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import attributions, roc
from mlops.evaluation.explaining import BACKGROUND_ROWS, EXPLAINING_SEED
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.privacy_rules import ExplanationMembershipRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Floats = NDArray[np.float64]


def check_explanation_membership(rule: ExplanationMembershipRule, hearing: Hearing) -> Findings:
    """AUC of both attacks, measured on rows that neither was fitted on.

    Raises:
        NotEvaluableError: Too few rows on one side, or no method explains the model.
    """
    if attributions.has_tensors(hearing.model.contract):
        hearing.require_parity()  # gradients are the module's
    seed = hearing.seed_of(rule.name)
    size = min(rule.rows, len(hearing.train), len(hearing.test))
    if size < 400:
        raise NotEvaluableError(
            "too-few-rows", f"{size} rows on one side: an attack needs 400 to be fitted and measured"
        )
    members, strangers = (
        explain_as_served(rows.sample(size, seed=seed), hearing, draws=rule.draws)
        for rows in (hearing.train, hearing.test)
    )
    grounds = [explained[1::2, :-1] for explained in (members, strangers)]
    scores = {
        "variance": (-grounds[0].var(axis=1), -grounds[1].var(axis=1)),
        "random forest": _by_forest(members, strangers, seed=seed),
    }
    claims = []
    for name, (inside, outside) in scores.items():
        evidence = roc.assess_area(
            inside, outside, threshold=rule.maximum_auc, alpha=hearing.policy.alpha, is_minimum=False
        )
        claims.append(Claim(f"{name}: AUC", "at most", rule.maximum_auc, n=inside.size, evidence=evidence))
    return Findings(tuple(claims), {"attack_roc": {name: roc.curve(*pair) for name, pair in scores.items()}})


def explain_as_served(rows: Rows, hearing: Hearing, *, draws: int) -> Floats:
    """What `explain_row` tells of each row: the grounds and then the log-odds, `[N, D + 1]`."""
    class_ = hearing.favourable
    background = hearing.train.sample(BACKGROUND_ROWS, seed=EXPLAINING_SEED).features
    found = attributions.attribute(
        hearing.model, rows.features, background=background, class_=class_, seed=EXPLAINING_SEED, draws=draws
    )
    log_odds = attributions.log_odds_of_logits(hearing.model.answer(rows.features).logits, class_=class_)
    return np.column_stack([found.values, log_odds])


def _by_forest(members: Floats, strangers: Floats, *, seed: int) -> tuple[Floats, Floats]:
    from sklearn.ensemble import RandomForestClassifier  # slow to load

    known = np.vstack([members[::2], strangers[::2]])
    truth = np.repeat([1, 0], [len(members[::2]), len(strangers[::2])])
    forest = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=seed % 2**31, n_jobs=1)
    forest.fit(known, truth)
    return forest.predict_proba(members[1::2])[:, 1], forest.predict_proba(strangers[1::2])[:, 1]
