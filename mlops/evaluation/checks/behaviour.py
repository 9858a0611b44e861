"""What must hold for every row by reason alone: directions, and values that must not matter; bounds on violations.

Source: the directional and invariance tests of Ribeiro et al., CheckList (ACL 2020), with exact bounds added.
Leaves to others: single cases that went wrong in production (incident_cases.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import rates
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import InvarianceRule, MonotoneRule
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_monotone(rule: MonotoneRule, hearing: Hearing) -> Findings:
    """Share of rows whose favourable probability moves against the direction when the number rises by one step."""
    column = _input(hearing, rule.column, kind="number")
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    raised = rows.features[rule.column] + np.float32(rule.step)
    if column.maximum is not None:
        is_inside = raised <= column.maximum
        rows, raised = rows.take(is_inside), raised[is_inside]
    if len(rows) == 0:
        raise NotEvaluableError("no-rows", f"no row can rise by {rule.step:g} in {rule.column} and stay in range")
    before = hearing.model.answer(rows.features).probabilities[:, hearing.favourable]
    after = hearing.model.answer({**rows.features, rule.column: raised}).probabilities[:, hearing.favourable]
    change = (before - after if not rule.falls else after - before).astype(np.float64)
    direction = "less likely" if not rule.falls else "more likely"
    text = f"rows for which the favourable answer becomes {direction} when {rule.column} rises by {rule.step:g}"
    is_violated = change > max(rule.slack, 1e-6)
    return Findings(
        (claim_at_most(rule.column, is_violated, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text),)
    )


def check_invariance(rule: InvarianceRule, hearing: Hearing) -> Findings:
    """Share of rows whose answer changes when the column takes any other of its values."""
    if rule.column not in {column.name for column in hearing.model.contract.inputs}:
        return _not_an_input(rule, hearing)
    column = _input(hearing, rule.column, kind="category")
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    own = hearing.model.answer(rows.features).classes
    is_changed = np.zeros(len(rows), dtype=bool)
    for code in range(len(column.categories or ())):
        other = np.full_like(rows.features[rule.column], code)
        is_changed |= hearing.model.answer({**rows.features, rule.column: other}).classes != own
    text = f"rows whose answer changes with another value of {rule.column}"
    return Findings(
        (claim_at_most(rule.column, is_changed, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text),)
    )


def _not_an_input(rule: InvarianceRule, hearing: Hearing) -> Findings:
    """A column that the artefact never sees cannot change an answer: a fact about the contract."""
    if rule.column not in hearing.test.groups:
        raise NotEvaluableError("attribute-missing", f"neither the model nor the rows have a column {rule.column}")
    evidence = rates.Evidence(0.0, 0.0, 0.0, p_good=0.0, p_bad=1.0)
    text = f"{rule.column} is no input of the model, so it cannot matter directly; proxies are what the gaps judge"
    return Findings((Claim(rule.column, "at most", rule.maximum, n=len(hearing.test), evidence=evidence, text=text),))


def claim_at_most(name: str, is_bad: NDArray[np.bool_], *, maximum: float, alpha: float, text: str = "") -> Claim:
    """The claim that the rate of `is_bad` is at most `maximum`."""
    hits, n = int(is_bad.sum()), int(is_bad.size)
    evidence = rates.assess_rate_at_most(hits, n, maximum=maximum, alpha=alpha)
    is_open = evidence.p_good > alpha and evidence.p_bad > alpha
    needed = rates.plan_rows_for_rate(hits, n, threshold=maximum, alpha=alpha) if is_open else None
    return Claim(name, "at most", maximum, n=n, evidence=evidence, rows_needed=needed, text=text)


def _input(hearing: Hearing, name: str, *, kind: str) -> Any:
    column = next((column for column in hearing.model.contract.inputs if column.name == name), None)
    if column is None or column.kind != kind:
        raise NotEvaluableError("column-missing", f"the model has no {kind} input {name}")
    return column
