"""Yesterday's incidents as tests: every case with a neighbourhood, so that it cannot be memorised.

Severity 1 tolerates no violation in the neighbourhood; others have a bound on the violation rate.
Leaves to others: the files (incident_spec.py), opening and closing incidents (mlops/incidents).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.clock import SECOND_US
from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.incident_spec import IncidentCase, Relation, load_cases
from mlops.evaluation.policy import IncidentsRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

if TYPE_CHECKING:
    from mlops.evaluation.judged import JudgedModel
    from mlops.evaluation.surface_rules import Constraint
    from mlops.training.contract import Contract

NEIGHBOURS = 200


def check_incidents(rule: IncidentsRule, hearing: Hearing) -> Findings:
    """Every open case with its neighbourhood; a corpus without open cases holds trivially and says so."""
    folder = hearing.incidents_folder
    cases = load_cases(folder) if folder is not None and folder.is_dir() else ()
    cases = tuple(case for case in cases if case.product in ("", hearing.policy.product))
    today = datetime.fromtimestamp(hearing.now_us / SECOND_US, tz=UTC).date()
    opened = [case for case in cases if case.expires >= today]
    claims = [_judge(case, rule, hearing) for case in opened]
    if not claims:
        fact = Evidence(0.0, 0.0, 0.0, p_good=0.0, p_bad=1.0)
        claims = [Claim("no open case", "at most", rule.maximum, n=0, evidence=fact, text="no incident is on record")]
    expired = [case.id for case in cases if case.expires < today]
    return Findings(tuple(claims), {"cases": {case.id: case.digest for case in opened}, "expired": expired})


def draw_neighbours(
    case: IncidentCase, contract: Contract, *, seed: int, constraints: tuple[Constraint, ...] = ()
) -> dict[str, NDArray[Any]]:
    """The case's input first, then rows drawn from its neighbourhood: features of `NEIGHBOURS` rows in all.

    Raises:
        NotEvaluableError: The case does not fit the contract.
    """
    from mlops.evaluation.attack_surface import plan_surface  # loads torch, which costs seconds

    row = _row_of(case, contract)
    surface = plan_surface(row, contract=contract, changes=case.neighbourhood, constraints=constraints)
    rng = np.random.default_rng(seed)
    low, high = surface.row_limits()
    flat = (low + rng.random((NEIGHBOURS, surface.width)) * (high - low)).astype(np.float32)
    flat[0], flat[:, 0] = surface.encode()[0], 0.0
    return surface.decode(flat)


def find_violations(
    relation: Relation, features: dict[str, NDArray[Any]], *, model: JudgedModel, favourable: int
) -> NDArray[np.bool_]:
    """Which rows do not have what must hold.

    Raises:
        NotEvaluableError: There is no such class or input, or the model does not run.
    """
    answers, classes = model.answer(features), model.contract.classes
    if relation.kind in {"equals", "is-not"}:
        if relation.answer not in classes:
            raise NotEvaluableError("case-wrong", f"there is no class {relation.answer!r}")
        is_answer = answers.classes == classes.index(relation.answer or "")
        return ~is_answer if relation.kind == "equals" else is_answer
    chance = answers.probabilities[:, favourable]
    if relation.kind == "bound":
        return (chance < relation.minimum) | (chance > relation.maximum)
    column = next((column for column in model.contract.inputs if column.name == relation.column), None)
    wanted = "number" if relation.kind == "monotone" else "category"
    if column is None or column.kind != wanted:  # of another kind nothing would be tried, and nothing violated
        raise NotEvaluableError("case-wrong", f"the model has no {wanted} {relation.column!r} to be {relation.kind}")
    own = features[column.name]
    if relation.kind == "monotone":
        raised = model.answer({**features, column.name: own + np.float32(relation.step)})
        return chance - raised.probabilities[:, favourable] > 1e-6
    is_changed = np.zeros(len(own), dtype=bool)
    for code in range(len(column.categories or ())):
        other = model.answer({**features, column.name: np.full_like(own, code)})
        is_changed |= other.classes != answers.classes
    return is_changed


def _judge(case: IncidentCase, rule: IncidentsRule, hearing: Hearing) -> Claim:
    seed, constraints = hearing.seed_of(f"incident {case.id}"), hearing.policy.constraints
    features = draw_neighbours(case, hearing.model.contract, seed=seed, constraints=constraints)
    is_violated = find_violations(case.relation, features, model=hearing.model, favourable=hearing.favourable)
    text = f"severity {case.severity}, {case.title}; {_in_training(case, hearing)}"
    if case.severity > 1:
        claim = claim_at_most(case.id, is_violated, maximum=rule.maximum, alpha=hearing.policy.alpha)
        return replace(claim, text=text)
    share, is_good = float(is_violated.mean()), not is_violated.any()
    fact = Evidence(share, share, share, p_good=0.0 if is_good else 1.0, p_bad=1.0 if is_good else 0.0)
    return Claim(case.id, "at most", 0.0, n=NEIGHBOURS, evidence=fact, text=text)


def _row_of(case: IncidentCase, contract: Contract) -> Rows:
    """The case's input as one row."""
    features: dict[str, NDArray[Any]] = {}
    for column in contract.inputs:
        if column.name not in case.input:
            raise NotEvaluableError("case-wrong", f"incident {case.id} lacks a value of {column.name}")
        value = case.input[column.name]
        if column.kind == "category":
            if value not in (column.categories or ()):
                raise NotEvaluableError("case-wrong", f"incident {case.id}: {column.name} has no category {value!r}")
            value = (column.categories or ()).index(str(value))
        features[column.name] = np.full(1, float(value)).astype(column.dtype)
    return Rows(features=features, labels=np.zeros(1, dtype=np.int64), groups={})


def _in_training(case: IncidentCase, hearing: Hearing) -> str:
    row = _row_of(case, hearing.model.contract).features
    train = hearing.train.features
    is_equal = np.logical_and.reduce([train[name].reshape(-1) == row[name][0] for name in row if train[name].ndim == 1])
    found = int(is_equal.sum())
    return f"found {found} times in the training rows" if found else "not in the training rows"
