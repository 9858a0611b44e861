"""Membership inference: can an attacker who knows a row tell whether the model was trained on it?

Members are a sample of the training split, non-members of the test split; both were split by keyed hash, so they are
exchangeable but for membership. Each attack is fitted on one half and measured on the other, so its bounds are those of
a fixed score. Leaves to others: the attack with the sweep's trials as reference models (reference_membership.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import rates, roc
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import MembershipRule
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Floats = NDArray[np.float64]


def check_membership(rule: MembershipRule, hearing: Hearing) -> Findings:
    """AUC and true positive rate at a small false positive rate, for each attack; every attack must stay below."""
    seed = hearing.seed_of(rule.name)
    members = _signals(hearing, "train", rows=rule.rows, seed=seed)
    strangers = _signals(hearing, "test", rows=rule.rows, seed=seed)
    size = min(len(members), len(strangers))
    if size < 200:
        raise NotEvaluableError(
            "too-few-rows", f"{size} rows on one side: an attack needs 200 to be fitted and measured"
        )
    claims: list[Claim] = []
    curves: dict[str, Any] = {}
    for name, attack in ATTACKS.items():
        inside, outside = attack(members[:size], strangers[:size], seed)
        claims += _claims(name, inside, outside, rule=rule, alpha=hearing.policy.alpha)
        curves[name] = roc.curve(inside, outside)
    return Findings(tuple(claims), {"attack_roc": curves})


def _signals(hearing: Hearing, split: str, *, rows: int, seed: int) -> Floats:
    """What an attacker sees of each row: probability of the true class and of each class, one row per sampled row."""
    chosen, answers = (
        (hearing.train, hearing.train_answers) if split == "train" else (hearing.test, hearing.test_answers)
    )
    order = np.random.default_rng(seed).permutation(len(chosen))[:rows]
    probabilities = answers.probabilities[order].astype(np.float64)
    true = probabilities[np.arange(len(order)), chosen.labels[order]]
    label = np.eye(probabilities.shape[1])[chosen.labels[order]]
    return np.column_stack([true, probabilities, label])


def _attack_by_loss(members: Floats, strangers: Floats, _seed: int) -> tuple[Floats, Floats]:
    """The surer of the true answer, the likelier a member (Yeom et al., CSF 2018)."""
    return _held_out(_logit(members[:, 0])), _held_out(_logit(strangers[:, 0]))


def _attack_by_entropy(members: Floats, strangers: Floats, _seed: int) -> tuple[Floats, Floats]:
    """Modified prediction entropy (Song & Mittal, USENIX Security 2021), negated: low entropy means member."""
    return _held_out(_negated_entropy(members)), _held_out(_negated_entropy(strangers))


def _attack_by_forest(members: Floats, strangers: Floats, seed: int) -> tuple[Floats, Floats]:
    """ART's black-box attack: a random forest on the answers and the true label, given half of the truth."""
    from sklearn.ensemble import RandomForestClassifier  # the attack model ART itself uses for "rf"; slow to load

    known = np.vstack([members[::2], strangers[::2]])
    truth = np.repeat([1, 0], [len(members[::2]), len(strangers[::2])])
    forest = RandomForestClassifier(n_estimators=60, min_samples_leaf=5, random_state=seed % 2**31, n_jobs=1)
    forest.fit(known, truth)
    return forest.predict_proba(_held_out(members))[:, 1], forest.predict_proba(_held_out(strangers))[:, 1]


ATTACKS: dict[str, Callable[[Floats, Floats, int], tuple[Floats, Floats]]] = {
    "loss": _attack_by_loss,
    "entropy": _attack_by_entropy,
    "random forest": _attack_by_forest,
}


def _claims(name: str, inside: Floats, outside: Floats, *, rule: MembershipRule, alpha: float) -> list[Claim]:
    area = roc.assess_area(inside, outside, threshold=rule.maximum_auc, alpha=alpha, is_minimum=False)
    # the threshold is fixed on half of the non-members, and the members are counted once at it
    cut = roc.threshold_at(outside[::2], false_positive_rate=rule.at_fpr)
    hits, false_hits = int((inside > cut).sum()), int((outside[1::2] > cut).sum())
    rate = rates.assess_rate_at_most(hits, inside.size, maximum=rule.maximum_tpr, alpha=alpha)
    measured = rates.clopper_pearson(false_hits, outside[1::2].size, alpha=alpha)
    text = f"false positive rate measured {false_hits / outside[1::2].size:.4f} [{measured[0]:.4f}, {measured[1]:.4f}]"
    needed = None
    if rate.p_good > alpha:
        needed = rates.plan_rows_for_rate(hits, inside.size, threshold=rule.maximum_tpr, alpha=alpha)
    return [
        Claim(f"{name}: AUC", "at most", rule.maximum_auc, n=inside.size, evidence=area),
        Claim(
            f"{name}: true positives at {rule.at_fpr:.1%} false positives",
            "at most",
            rule.maximum_tpr,
            n=inside.size,
            evidence=rate,
            rows_needed=needed,
            text=text,
        ),
    ]


def _held_out(values: Floats) -> Floats:
    return values[1::2]


def _logit(values: Floats) -> Floats:
    inside = np.clip(values, 1e-7, 1 - 1e-7)
    found: Floats = np.log(inside) - np.log1p(-inside)
    return found


def _negated_entropy(signals: Floats) -> Floats:
    classes = (signals.shape[1] - 1) // 2
    probabilities = np.clip(signals[:, 1 : 1 + classes], 1e-7, 1 - 1e-7)
    label = signals[:, 1 + classes :]
    wrong = ((1 - label) * probabilities * np.log(1 - probabilities)).sum(axis=1)
    right = ((1 - signals[:, 0]) * np.log(np.clip(signals[:, 0], 1e-7, 1))).astype(np.float64)
    found: Floats = right + wrong
    return found
