"""Explaining one answer to a person: what moved it, and what the person could change to get another one.

Leaves to others: which model and row (mlops/overview/explanation), training rows behind it (influence.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import attributions
from mlops.evaluation.attack_surface import Surface, plan_surface
from mlops.evaluation.judged import JudgedModel
from mlops.evaluation.rows import Rows
from mlops.evaluation.surface_rules import Change, Constraint
from mlops.training.contract import ColumnLike

DRAWS = 200
"""Training rows that the explained row is compared with …"""
BACKGROUND_ROWS = 2_000
"""… drawn from this many, which are drawn once …"""
EXPLAINING_SEED = 0
"""… by this seed: the same question gets the same answer."""
TRIED = 50_000
"""Changed rows that are asked at most."""
STEPS = 11
"""Values of a changeable number that are tried."""


@dataclass(frozen=True)
class Ground:
    """What one input added."""

    column: str
    value: str
    log_odds: float
    """Against the comparison rows; positive speaks for the answer that people want."""


@dataclass(frozen=True)
class Counterfactual:
    """The nearest row within what the person can change that is answered otherwise."""

    changes: tuple[tuple[str, str, str], ...]
    """Column, value now, value then."""
    answer: str
    probability: float
    """Of the favourable class."""


@dataclass(frozen=True)
class Explanation:
    """One answer, explained."""

    answer: str
    probability: float
    """Of the favourable class."""
    favourable: str
    grounds: tuple[Ground, ...]
    """Strongest first."""
    base: float
    """Log-odds of the favourable class in the mean of the comparison rows."""
    log_odds: float
    """Of this row: base plus all grounds, but for the error."""
    completeness_error: float
    counterfactual: Counterfactual | None
    counterfactual_text: str
    """Why there is none; empty when there is one."""
    best_probability: float | None
    """Of the favourable class, within reach; None when nothing was tried."""


def explain_row(
    model: JudgedModel,
    row: Mapping[str, NDArray[Any]],
    *,
    background: Rows,
    changes: tuple[Change, ...],
    constraints: tuple[Constraint, ...] = (),
    favourable: str,
    seed: int = EXPLAINING_SEED,
) -> Explanation:
    """Explain the artefact's answer on one row.

    Args:
        model: The artefact.
        row: Features of shape `[1]` or `[1, *shape]`.
        background: Training rows to compare with.
        changes: What the person can change; from the policy.
        constraints: What holds between columns; from the policy.
        favourable: Name of the class that people want.
        seed: Of the comparison rows.

    Raises:
        NotEvaluableError: The model does not run on the row, or a change does not fit the model.
    """
    class_ = model.contract.classes.index(favourable)
    answers = model.answer(row)
    found = attributions.attribute(model, row, background=background.features, class_=class_, seed=seed, draws=DRAWS)
    log_odds = float(attributions.log_odds_of_logits(answers.logits, class_=class_)[0])
    counterfactual, best, text = _find_counterfactual(
        model, row, changes=changes, constraints=constraints, class_=class_, seed=seed
    )
    return Explanation(
        answer=model.contract.classes[int(answers.classes[0])],
        probability=float(answers.probabilities[0, class_]),
        favourable=favourable,
        grounds=_grounds(found, row, model),
        base=log_odds - float(found.explained[0]),
        log_odds=log_odds,
        completeness_error=float(found.completeness_error[0]),
        counterfactual=counterfactual,
        counterfactual_text=text,
        best_probability=best,
    )


def spell(column: ColumnLike, value: Any) -> str:
    """A value as people write it."""
    if column.kind == "category":
        return str((column.categories or ())[int(value)])
    return f"{float(value):g}"


def _grounds(
    found: attributions.Attributions, row: Mapping[str, NDArray[Any]], model: JudgedModel
) -> tuple[Ground, ...]:
    grounds = []
    for index, name in enumerate(found.inputs):
        column_name, _, position = name.partition("[")
        column = next(column for column in model.contract.inputs if column.name == column_name)
        flat = row[column_name].reshape(-1)
        value = flat[int(position.rstrip("]"))] if position else flat[0]
        grounds.append(Ground(name, spell(column, value), float(found.values[0, index])))
    return tuple(sorted(grounds, key=lambda ground: -abs(ground.log_odds)))


def _find_counterfactual(
    model: JudgedModel,
    row: Mapping[str, NDArray[Any]],
    *,
    changes: tuple[Change, ...],
    constraints: tuple[Constraint, ...],
    class_: int,
    seed: int,
) -> tuple[Counterfactual | None, float | None, str]:
    """The cheapest changed row with another answer: few columns first, then small steps."""
    if not changes:
        return None, None, "the policy names nothing that a person can change (`changes`)"
    own = Rows(features=row, labels=np.zeros(1, dtype=np.int64), groups={})
    surface = plan_surface(own, contract=model.contract, changes=changes, constraints=constraints)
    features, cost = _variants(surface, seed=seed)
    answers = model.answer(features)
    before = int(model.answer(row).classes[0])
    is_other = answers.classes == class_ if before != class_ else answers.classes != class_
    best = float(answers.probabilities[:, class_].max())
    if not is_other.any():
        return (
            None,
            best,
            f"none of {len(cost):,} rows within reach is answered otherwise: nothing you can change helps",
        )
    chosen = int(np.flatnonzero(is_other)[np.argmin(cost[is_other])])
    columns = {column.name: column for column in model.contract.inputs}
    named = [change.column for change in changes]
    turned = tuple(
        (name, spell(columns[name], row[name][0]), spell(columns[name], features[name][chosen]))
        for name in named
        if features[name][chosen] != row[name][0]
    )
    answer = model.contract.classes[int(answers.classes[chosen])]
    return Counterfactual(turned, answer, float(answers.probabilities[chosen, class_])), best, ""


def _variants(surface: Surface, *, seed: int) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
    """Rows within reach, all of them where they are few, and what each costs."""
    own, (low, high) = surface.encode()[0], surface.row_limits()
    choices: list[list[tuple[NDArray[np.float32], float]]] = []
    for part in surface.numbers:
        values = np.unique(np.append(np.linspace(low[0, part.start], high[0, part.start], STEPS), own[part.start]))
        choices.append([_move(own, part.start, value) for value in values])
    for group in surface.categories:
        codes = [int(np.argmax(own[group.start : group.start + group.size])), *group.allowed]
        choices.append([_claim(own, group.start, group.size, code) for code in dict.fromkeys(codes)])
    picks = list(itertools.islice(itertools.product(*(range(len(options)) for options in choices)), TRIED + 1))
    if len(picks) > TRIED:
        rng = np.random.default_rng(seed)
        picks = [tuple(int(rng.integers(len(options))) for options in choices) for _ in range(TRIED)]
    deltas = [np.stack([delta for delta, _ in options]) for options in choices]
    costs = [np.array([cost for _, cost in options]) for options in choices]
    index = np.array(picks)
    flat = own + sum(delta[index[:, column]] for column, delta in enumerate(deltas))
    cost = sum(one[index[:, column]] for column, one in enumerate(costs))
    return surface.decode(flat.astype(np.float32)), np.asarray(cost, dtype=np.float64)


def _move(own: NDArray[np.float32], position: int, value: float) -> tuple[NDArray[np.float32], float]:
    delta = np.zeros_like(own)
    delta[position] = value - own[position]
    distance = abs(float(delta[position]))
    return delta, (1.0 + distance) if distance > 0 else 0.0


def _claim(own: NDArray[np.float32], start: int, size: int, code: int) -> tuple[NDArray[np.float32], float]:
    delta = np.zeros_like(own)
    delta[start : start + size] = -own[start : start + size]
    delta[start + code] += 1.0
    return delta, 0.0 if own[start + code] == 1.0 else 1.5
