"""A case that is nobody's row: a synthetic neighbour of what was reported that the model answers just as wrongly.

Every number moves, some categories are exchanged for others of the contract, and a row that stands in the data is never
taken. The reported row itself is not kept anywhere. Pure but for the two functions given.
Leaves to others: asking the model and looking into the data (opening.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.errors import Reason, Refusal
from mlops.evaluation.surface_rules import Change
from mlops.incidents.request import Features
from mlops.serving.server.contract import Column, Contract

DRAWS = 2_000
EXCHANGE = 0.25
"""Chance that a draw claims another category in a column."""
STEP = 0.05
"""Part of a number's own size by which it may move; at least one unit."""
Ask = Callable[[Features], NDArray[np.bool_]]


def synthesise(row: Features, contract: Contract, *, is_wrong: Ask, is_known: Ask, seed: int = 0) -> Features | Refusal:
    """A synthetic row near `row` that is answered as wrongly.

    Args:
        row: What was reported, features of shape `[1]`.
        contract: Ranges and categories.
        is_wrong: Features of N rows to whether the model's answer breaks what should hold.
        is_known: The same, to whether such a row stands in the data.
        seed: Of the draws; the same report gives the same case.

    Returns:
        The row, or the refusal when all that is answered wrongly is the reported row itself.
    """
    drawn, exchanged, moved = _draw(row, contract, np.random.default_rng(seed))
    least = min(2, len(contract.inputs))
    good = is_wrong(drawn) & ~is_known(drawn) & (exchanged + moved >= least)
    if not good.any():
        text = (
            f"none of {DRAWS} synthetic rows near it is answered wrongly, and the reported row itself is never written "
            "down; give a made-up row with --synthetic, or write a check into evaluation/checks/"
        )
        return Refusal((Reason("no-synthetic-case", text),))
    candidates = np.flatnonzero(good)
    chosen = candidates[np.lexsort((candidates, np.abs(exchanged[candidates] - 1), -moved[candidates]))[0]]
    return {name: values[chosen : chosen + 1] for name, values in drawn.items()}


def step_of(value: float, column: Column) -> float:
    """How far a number may move: a twentieth of its size, at least one unit (or a thousandth of its range)."""
    spread = (column.maximum - column.minimum) if column.maximum is not None and column.minimum is not None else 1.0
    least = 1.0 if column.is_whole else max(spread / 1_000, 1e-6)
    step = max(abs(value) * STEP, least)
    return float(round(step)) if column.is_whole else float(f"{step:.3g}")


def plan_neighbourhood(row: Features, contract: Contract) -> tuple[Change, ...]:
    """What may vary around a case when nobody said it: each number by its step; else any name of the first category."""
    numbers = [column for column in contract.inputs if column.categories is None]
    steps = {column.name: step_of(float(row[column.name][0]), column) for column in numbers}
    found = tuple(Change(column=name, up=step, down=step) for name, step in steps.items())
    return found or (Change(column=contract.inputs[0].name, to=_names_of(row, contract.inputs[0])),)


def to_plain(row: Features, contract: Contract) -> dict[str, float | str]:
    """Features of one row as a case writes them: numbers, and names of categories."""
    plain: dict[str, float | str] = {}
    for column in contract.inputs:
        value = row[column.name][0]
        if column.categories is not None:
            plain[column.name] = column.categories[int(value)]
        else:
            plain[column.name] = int(value) if column.is_whole else float(f"{float(value):.7g}")
    return plain


def _draw(
    row: Features, contract: Contract, rng: np.random.Generator
) -> tuple[Features, NDArray[np.int64], NDArray[np.int64]]:
    """Features of all draws, and how many categories were exchanged and numbers moved in each."""
    features: Features = {}
    exchanged, moved = np.zeros(DRAWS, dtype=np.int64), np.zeros(DRAWS, dtype=np.int64)
    for column in contract.inputs:
        own = row[column.name][0]
        if column.categories is not None:
            other = rng.integers(0, len(column.categories), DRAWS)
            values = np.where(rng.random(DRAWS) < EXCHANGE, other, int(own))
            exchanged += values != int(own)
        else:
            values = _move(float(own), column, rng)
            moved += values.astype(column.dtype) != own
        features[column.name] = values.astype(column.dtype)
    return features, exchanged, moved


def _move(own: float, column: Column, rng: np.random.Generator) -> NDArray[Any]:
    step = step_of(own, column)
    if column.is_whole:
        values: NDArray[Any] = own + rng.integers(-int(step), int(step) + 1, DRAWS)
    else:
        values = np.array([float(f"{own + move:.7g}") for move in rng.uniform(-step, step, DRAWS)])
    return np.clip(values, max(column.low, -1e30), min(column.high, 1e30))


def _names_of(row: Features, column: Column) -> tuple[str, ...]:
    assert column.categories is not None
    return (column.categories[int(row[column.name][0])],)
