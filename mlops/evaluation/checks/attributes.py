"""Attribute inference: does the model give away what an attacker does not know of a person?

The attacker knows every other input and the true label, and half of the rows with the attribute. A forest on those
alone is the baseline; a forest that also sees the model's answer is the attack; always guessing the commonest value is
the majority. What counts is how many rows more the attack tells than the better of both, on rows that neither was
fitted on.
Source: Yeom et al., CSF 2018; ART's AttributeInferenceBlackBox fits the same attack model, without the paired bound.
Leaves to others: membership (membership.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import paired
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.privacy_rules import AttributeInferenceRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Values = NDArray[Any]


def check_attribute_inference(rule: AttributeInferenceRule, hearing: Hearing) -> Findings:
    """Share told rightly by the attack minus that of the better of baseline and majority, on training rows.

    Raises:
        NotEvaluableError: The column is unknown, has one value, or there are too few rows.
    """
    if rule.column not in hearing.train.groups:
        raise NotEvaluableError("attribute-missing", f"the rows have no category column {rule.column}")
    seed = hearing.seed_of(rule.name)
    rows = hearing.train.sample(rule.rows, seed=seed)
    truth = rows.groups[rule.column]
    if len(np.unique(truth)) < 2:
        raise NotEvaluableError("single-group", f"all rows have one value of {rule.column}: nothing to infer")
    if len(rows) < 400:
        raise NotEvaluableError("too-few-rows", f"{len(rows)} rows: an attack needs 400 to be fitted and measured")
    known = _known(rows, without=rule.column)
    answers = hearing.model.answer(rows.features).probabilities
    attack = _told(np.column_stack([known, answers]), truth, seed=seed)
    baseline = _told(known, truth, seed=seed)
    values, counts = np.unique(truth[::2], return_counts=True)
    majority = truth[1::2] == values[counts.argmax()]
    rivals = {"baseline": baseline, "majority": majority}
    word = max(rivals, key=lambda name: float(rivals[name].mean()))
    evidence = _advantage(attack, rivals[word], maximum=rule.maximum, alpha=hearing.policy.alpha)
    shares = {"attack": float(attack.mean()), **{name: float(told.mean()) for name, told in rivals.items()}}
    text = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    claim = Claim(
        f"{rule.column}: told beyond the {word}", "at most", rule.maximum, n=attack.size, evidence=evidence, text=text
    )
    return Findings((claim,), {"told_rightly": shares})


def _known(rows: Rows, *, without: str) -> Values:
    columns = [values.reshape(len(rows), -1) for name, values in sorted(rows.features.items()) if name != without]
    return np.column_stack([*columns, rows.labels]).astype(np.float64)


def _told(known: Values, truth: Values, *, seed: int) -> NDArray[np.bool_]:
    from sklearn.ensemble import RandomForestClassifier  # slow to load

    forest = RandomForestClassifier(n_estimators=60, min_samples_leaf=3, random_state=seed % 2**31, n_jobs=1)
    forest.fit(known[::2], truth[::2])
    found: NDArray[np.bool_] = forest.predict(known[1::2]) == truth[1::2]
    return found


def _advantage(attack: NDArray[np.bool_], rival: NDArray[np.bool_], *, maximum: float, alpha: float) -> Evidence:
    """Tango's test asks "not lower by a margin"; here the rival must not be lower than the attack by `maximum`."""
    gained, lost = int((rival & ~attack).sum()), int((attack & ~rival).sum())
    margin = min(max(maximum, 1e-6), 1 - 1e-6)
    found = paired.assess_paired_rates(gained, lost, attack.size, margin=margin, alpha=alpha)
    return Evidence(-found.estimate, -found.upper, -found.lower, p_good=found.p_good, p_bad=found.p_bad)
