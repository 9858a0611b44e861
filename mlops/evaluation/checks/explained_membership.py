"""Membership inference from explanations, for products that serve them.

What is served for a row is, per input, how far the answer falls when that input takes its usual value (ablation); the
attacker sees those numbers and the answer. The variance of an explanation is a score by itself (Shokri, Strobel & Zick,
AIES 2021); a forest on all numbers, given half of the truth, is the stronger one.
Leaves to others: attributions for people (explainability), membership from answers alone (membership.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import roc
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.privacy_rules import ExplanationMembershipRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Floats = NDArray[np.float64]


def check_explanation_membership(rule: ExplanationMembershipRule, hearing: Hearing) -> Findings:
    """AUC of both attacks, measured on rows that neither was fitted on.

    Raises:
        NotEvaluableError: Too few rows on one side.
    """
    seed = hearing.seed_of(rule.name)
    size = min(rule.rows, len(hearing.train), len(hearing.test))
    if size < 400:
        raise NotEvaluableError(
            "too-few-rows", f"{size} rows on one side: an attack needs 400 to be fitted and measured"
        )
    usual = _usual(hearing.train)
    members, strangers = (
        explain_by_ablation(rows.sample(size, seed=seed), hearing, usual=usual)
        for rows in (hearing.train, hearing.test)
    )
    scores = {
        "variance": (-members.var(axis=1)[1::2], -strangers.var(axis=1)[1::2]),
        "random forest": _by_forest(members, strangers, seed=seed),
    }
    claims = []
    for name, (inside, outside) in scores.items():
        evidence = roc.assess_area(
            inside, outside, threshold=rule.maximum_auc, alpha=hearing.policy.alpha, is_minimum=False
        )
        claims.append(Claim(f"{name}: AUC", "at most", rule.maximum_auc, n=inside.size, evidence=evidence))
    return Findings(tuple(claims), {"attack_roc": {name: roc.curve(*pair) for name, pair in scores.items()}})


def _usual(rows: Rows) -> dict[str, NDArray[np.generic]]:
    """The median of numbers (pixel by pixel), the commonest code of categories."""
    return {
        name: np.median(values, axis=0).astype(values.dtype)
        if values.dtype.kind == "f"
        else np.bincount(values).argmax().astype(values.dtype)
        for name, values in rows.features.items()
    }


def explain_by_ablation(rows: Rows, hearing: Hearing, *, usual: dict[str, NDArray[np.generic]]) -> Floats:
    """How far the answer's log-odds fall when each input takes its usual value, and the log-odds, `[N, D + 1]`."""
    answers = hearing.model.answer(rows.features)
    chosen = answers.classes

    def odds(probabilities: NDArray[np.float32]) -> Floats:
        own = np.clip(probabilities[np.arange(len(rows)), chosen].astype(np.float64), 1e-7, 1 - 1e-7)
        found: Floats = np.log(own) - np.log1p(-own)
        return found

    whole = odds(answers.probabilities)
    falls = []
    for column in hearing.model.contract.inputs:
        values = rows.features[column.name]
        ablated = {**rows.features, column.name: np.broadcast_to(usual[column.name], values.shape).copy()}
        falls.append(whole - odds(hearing.model.answer(ablated).probabilities))
    return np.column_stack([*falls, whole])


def _by_forest(members: Floats, strangers: Floats, *, seed: int) -> tuple[Floats, Floats]:
    from sklearn.ensemble import RandomForestClassifier  # slow to load

    known = np.vstack([members[::2], strangers[::2]])
    truth = np.repeat([1, 0], [len(members[::2]), len(strangers[::2])])
    forest = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=seed % 2**31, n_jobs=1)
    forest.fit(known, truth)
    return forest.predict_proba(members[1::2])[:, 1], forest.predict_proba(strangers[1::2])[:, 1]
