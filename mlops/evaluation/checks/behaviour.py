"""What must hold for every row by reason alone: directions, and values that must not matter; bounds on violations.

Source: the directional and invariance tests of Ribeiro et al., CheckList (ACL 2020), with exact bounds added.
Leaves to others: single cases that went wrong in production (incident_cases.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import rates
from mlops.evaluation.behaviour_rules import DirectionRule, FunctionalityRule, InvarianceRule, MonotoneRule, Value
from mlops.evaluation.hearing import Hearing
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


def check_direction(rule: DirectionRule, hearing: Hearing) -> Findings:
    """Share of rows whose favourable probability is lower with `better` than with `worse` in the column."""
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    chances = [
        hearing.model.answer(_with(rows.features, {rule.column: value}, hearing)).probabilities[:, hearing.favourable]
        for value in (rule.worse, rule.better)
    ]
    is_violated = (chances[0] - chances[1]).astype(np.float64) > max(rule.slack, 1e-6)
    text = f"rows for which {rule.column} {rule.better} makes the favourable answer less likely than {rule.worse}"
    alpha = hearing.policy.alpha
    return Findings((claim_at_most(rule.column, is_violated, maximum=rule.maximum, alpha=alpha, text=text),))


def check_functionality(rule: FunctionalityRule, hearing: Hearing) -> Findings:
    """Share of rows that are answered otherwise when they get the given values."""
    if rule.answer not in hearing.classes:
        raise NotEvaluableError("class-missing", f"there is no class {rule.answer!r}")
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    answers = hearing.model.answer(_with(rows.features, rule.given, hearing)).classes
    is_wrong = answers != hearing.classes.index(rule.answer)
    spelled = ", ".join(f"{name} {value}" for name, value in rule.given.items())
    text = f"rows that are not answered {rule.answer} with {spelled}"
    return Findings((claim_at_most("all", is_wrong, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text),))


def check_invariance(rule: InvarianceRule, hearing: Hearing) -> Findings:
    """Share of rows whose answer changes when the column takes any other of its values, swaps and all."""
    is_input = rule.column in {column.name for column in hearing.model.contract.inputs}
    if rule.swaps:
        return _check_swaps(rule, hearing)
    if not is_input:
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


def _check_swaps(rule: InvarianceRule, hearing: Hearing) -> Findings:
    """The counterfactual person: what goes with the column is exchanged too, in the rows that have it."""
    rows = hearing.test
    exchanged: dict[str, NDArray[Any]] = {}
    is_affected = np.zeros(len(rows), dtype=bool)
    for name, pairs in rule.swaps.items():
        own = rows.features[_input(hearing, name, kind="category").name]
        exchanged[name] = own.copy()
        for old, new in pairs.items():
            has_it = own == code_of(hearing, name, old)
            exchanged[name][has_it] = code_of(hearing, name, new)
            is_affected |= has_it
    if not is_affected.any():
        raise NotEvaluableError("no-rows", "no row has a value that would be exchanged")
    chosen = np.flatnonzero(is_affected)
    order = np.random.default_rng(hearing.seed_of(rule.name)).permutation(chosen.size)[: rule.rows]
    chosen = np.sort(chosen[order])
    before = rows.take(chosen).features
    after = {**before, **{name: values[chosen] for name, values in exchanged.items()}}
    is_changed = hearing.model.answer(after).classes != hearing.model.answer(before).classes
    text = f"rows whose answer changes when {rule.column} is turned with {', '.join(rule.swaps)}"
    alpha = hearing.policy.alpha
    return Findings((claim_at_most(rule.column, is_changed, maximum=rule.maximum, alpha=alpha, text=text),))


def _with(features: Any, given: dict[str, Value], hearing: Hearing) -> dict[str, NDArray[Any]]:
    """The same rows with these values.

    Raises:
        NotEvaluableError: No such input or category, or a value outside its range.
    """
    changed = dict(features)
    for name, value in given.items():
        code = code_of(hearing, name, value)
        changed[name] = np.full_like(features[name], code)
    return changed


def code_of(hearing: Hearing, name: str, value: Value) -> float:
    """The number that stands for a value of an input.

    Raises:
        NotEvaluableError: No such input or category, or a number outside its range.
    """
    column = next((column for column in hearing.model.contract.inputs if column.name == name), None)
    if column is None or column.kind == "tensor":
        raise NotEvaluableError("column-missing", f"the model has no number or category {name}")
    if column.kind == "category":
        if value not in (column.categories or ()):
            raise NotEvaluableError("category-missing", f"{name} has no category {value!r}")
        return float((column.categories or ()).index(str(value)))
    lowest = -np.inf if column.minimum is None else column.minimum
    highest = np.inf if column.maximum is None else column.maximum
    if isinstance(value, str) or not lowest <= value <= highest:
        raise NotEvaluableError("value-wrong", f"{name} cannot be {value!r}: it is a number in its stated range")
    return float(value)


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
