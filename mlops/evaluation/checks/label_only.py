"""Distance to the decision boundary, by labels alone: a trained row tends to lie farther from it than a stranger.

The score of a row is the share of its noisy copies that still get the right label, over ever stronger noise, with a
fixed number of queries for each row. Source: Choquette-Choo, Tramèr, Carlini & Papernot, ICML 2021, whose noise attack
needs no gradient of the boundary; ART's LabelOnlyDecisionBoundary walks to the boundary by HopSkipJump instead, row by
row and through numbers between categories, which a table's rows do not have.
Leaves to others: bounds on the attack (library_membership.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.judged import JudgedModel
from mlops.evaluation.rows import Rows

if TYPE_CHECKING:
    from mlops.training.contract import Contract

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the noise: the chance that a category is a donor's, and the deviation of numbers in their own deviations."""


def boundary_scores(model: JudgedModel, rows: Rows, *, donors: Rows, queries: int, seed: int) -> NDArray[np.float64]:
    """Share of `queries` noisy copies of each row that are answered with its label, `[N]`; 0 if the row itself is not.

    Args:
        model: Asked for labels only.
        rows: Attacked.
        donors: Rows of anybody, which give other values and the scale of the noise.
        queries: For each row; a multiple of the noise levels is used.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    each = max(1, queries // len(LEVELS))
    kept = np.zeros(len(rows))
    for level in LEVELS:
        for _ in range(each):
            copies = _disturb(rows, donors, contract=model.contract, level=level, rng=rng)
            kept += model.answer(copies).classes == rows.labels
    is_right = model.answer(rows.features).classes == rows.labels
    found: NDArray[np.float64] = np.where(is_right, kept / (each * len(LEVELS)), 0.0)
    return found


def _disturb(
    rows: Rows, donors: Rows, *, contract: Contract, level: float, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Another category with chance `level`, numbers moved by `level` of their deviation: whole and in range."""
    copies: dict[str, NDArray[Any]] = {}
    for column in contract.inputs:
        values, known = rows.features[column.name], donors.features[column.name]
        if column.kind == "category":
            others = known[rng.integers(len(known), size=len(values))]
            copies[column.name] = np.where(rng.random(len(values)) < level, others, values)
        else:
            moved = values + level * known.std(axis=0) * rng.normal(size=values.shape)
            moved = np.clip(moved, column.minimum, column.maximum)
            copies[column.name] = (np.rint(moved) if column.integer else moved).astype(values.dtype)
    return copies
