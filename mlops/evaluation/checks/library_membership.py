"""Membership attacks by the names people know: ART's forest on the answers and its label-only gap, and the boundary.

All are weak by nature (the gap sees accuracy and nothing else, the boundary attack labels only), so they advise beside
ours.
Leaves to others: attacks that can be relied on (membership.py, reference_membership.py).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import roc
from mlops.evaluation.checks.label_only import boundary_scores
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.libraries import prepare_art
from mlops.evaluation.privacy_rules import LibraryMembershipRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Floats = NDArray[np.float64]


def check_library_membership(rule: LibraryMembershipRule, hearing: Hearing) -> Findings:
    """AUC of each attack on rows that it was not fitted on.

    Raises:
        NotEvaluableError: Too few rows on one side.
    """
    seed = hearing.seed_of(rule.name)
    size = min(rule.rows, len(hearing.train), len(hearing.test))
    if size < 400:
        raise NotEvaluableError(
            "too-few-rows", f"{size} rows on one side: an attack needs 400 to be fitted and measured"
        )
    members, strangers = hearing.train.sample(size, seed=seed), hearing.test.sample(size, seed=seed)
    answers = np.vstack([hearing.model.answer(rows.features).probabilities for rows in (members, strangers)])
    labels = np.eye(answers.shape[1])[np.concatenate([members.labels, strangers.labels])]
    numbers = np.arange(2 * size, dtype=np.float32)[:, None]
    known, asked = numbers[: 2 * size : 2], numbers[1 : 2 * size : 2]
    is_member = asked[:, 0] < size
    claims = []
    for name in rule.attacks:
        if name == "boundary":
            positions = asked[:, 0].astype(np.int64)
            sides = (members, positions[is_member]), (strangers, positions[~is_member] - size)
            scores = np.concatenate([_at_boundary(rows.take(chosen), rule, hearing) for rows, chosen in sides])
        else:
            scores = _score(name, answers, labels, numbers=(known, asked), size=size)
        evidence = roc.assess_area(
            scores[is_member],
            scores[~is_member],
            threshold=rule.maximum_auc,
            alpha=hearing.policy.alpha,
            is_minimum=False,
        )
        claims.append(Claim(f"{name}: AUC", "at most", rule.maximum_auc, n=int(is_member.sum()), evidence=evidence))
    return Findings(tuple(claims))


def _at_boundary(rows: Rows, rule: LibraryMembershipRule, hearing: Hearing) -> Floats:
    seed = hearing.seed_of(f"{rule.name}:boundary")
    return boundary_scores(hearing.model, rows, donors=hearing.test, queries=rule.queries, seed=seed)


def _score(name: str, answers: NDArray[np.float32], labels: Floats, *, numbers: tuple[Any, Any], size: int) -> Floats:
    """ART sees rows as numbers and looks their answers up, so that any inputs will do."""
    prepare_art()
    from art.attacks.inference import membership_inference as art  # slow to load
    from art.estimators.classification import BlackBoxClassifier

    def predict(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(answers[rows[:, 0].astype(np.int64)], dtype=np.float32)

    known, asked = numbers
    at_known, at_asked = known[:, 0].astype(np.int64), asked[:, 0].astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ART warns about types it casts itself
        estimator = BlackBoxClassifier(predict, input_shape=(1,), nb_classes=answers.shape[1])
        if name == "label-only":
            gap = art.LabelOnlyGapAttack(estimator)
            return np.asarray(gap.infer(asked, labels[at_asked]), dtype=np.float64).ravel()
        attack = art.MembershipInferenceBlackBox(estimator, attack_model_type="rf")
        attack.attack_model.set_params(random_state=0, n_jobs=1, min_samples_leaf=5)
        inside = at_known < size
        attack.fit(known[inside], labels[at_known][inside], known[~inside], labels[at_known][~inside])
        found = attack.infer(asked, labels[at_asked], probabilities=True)
    return np.asarray(found, dtype=np.float64).reshape(len(asked), -1)[:, -1]
