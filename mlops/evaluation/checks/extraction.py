"""Model extraction: how many answers does it take to copy the model?

A random forest is fitted on the artefact's answers to rows of one half of the test set and compared with it on the
other half: agreement against number of queries. A good model is easy to copy, so this advises; it says what a limit on
queries buys. Source: Tramèr et al., USENIX Security 2016. Leaves to others: limiting queries (the proxy in
mlops/deploy).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.screen_rules import ExtractionRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

WIDEST = 256
"""Inputs beyond this are projected at random, as an attacker on a budget would."""


def check_extraction(rule: ExtractionRule, hearing: Hearing) -> Findings:
    """Agreement of the copy at the largest number of queries, and the whole curve.

    Raises:
        NotEvaluableError: Too few rows, or the model gives one answer only.
    """
    rows, answers = hearing.test, hearing.test_answers.classes
    order = np.random.default_rng(hearing.seed_of(rule.name)).permutation(len(rows))
    asked, kept = order[::2], order[1::2]
    if asked.size < min(rule.queries) or len(np.unique(answers)) < 2:
        raise NotEvaluableError(
            "too-few-rows", f"{asked.size} rows to ask with, {len(np.unique(answers))} answers seen"
        )
    flat = np.column_stack([values.reshape(len(rows), -1) for _, values in sorted(rows.features.items())])
    matrix = _narrow(flat.astype(np.float64), seed=hearing.seed_of(rule.name))
    curve, agrees = [], np.zeros(0, dtype=bool)
    for queries in sorted(number for number in rule.queries if number <= asked.size):
        agrees = _copy(matrix, answers, asked=asked[:queries], kept=kept) == answers[kept]
        curve.append({"queries": queries, "fidelity": float(agrees.mean())})
    text = f"copy from {curve[-1]['queries']:,.0f} answers; agreement with the commonest answer alone "
    text += f"{np.bincount(answers[kept]).max() / kept.size:.3f}"
    claim = claim_at_most("fidelity of a copy", agrees, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text)
    return Findings((claim,), {"extraction": curve})


def _narrow(matrix: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    if matrix.shape[1] <= WIDEST:
        return matrix
    return matrix @ np.random.default_rng(seed).normal(0, 1, (matrix.shape[1], WIDEST))


def _copy(
    matrix: NDArray[np.float64], answers: NDArray[np.int64], *, asked: NDArray[np.int64], kept: NDArray[np.int64]
) -> NDArray[np.int64]:
    from sklearn.ensemble import RandomForestClassifier  # slow to load

    if len(np.unique(answers[asked])) < 2:
        return np.full(kept.size, answers[asked][0])
    forest = RandomForestClassifier(n_estimators=100, random_state=0, n_jobs=1).fit(matrix[asked], answers[asked])
    found: NDArray[np.int64] = forest.predict(matrix[kept])
    return found
