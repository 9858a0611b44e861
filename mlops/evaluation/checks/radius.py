"""Robust accuracy over the size of the lie: for the plot beside an evasion check, never judged.

Leaves to others: the check itself with its bound, and the attack (evasion.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import EvasionRule
from mlops.evaluation.surface_rules import Change

if TYPE_CHECKING:
    from mlops.evaluation.attack_surface import Surface

SCALES = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Of the policy's steps; categories may be claimed from the first one on."""
ROWS = 200
Survives = Callable[["Surface"], NDArray[np.bool_]]
"""Rows of a surface that are answered rightly after an attack."""


def robust_over_radius(rule: EvasionRule, hearing: Hearing, *, survives: Survives) -> list[dict[str, float]]:
    """Share of right answers that survive at each scale of the steps; empty where no number can be changed.

    A row that falls at a smaller scale counts as fallen at every larger one, which reaches at least as far.
    """
    from mlops.evaluation.attack_surface import plan_surface  # loads torch, which costs seconds

    if not any(change.up or change.down for change in rule.changes):
        return []
    rows = hearing.test.sample(min(rule.rows, ROWS), seed=hearing.seed_of(rule.name))
    holds = hearing.model.answer(rows.features).classes == rows.labels
    contract = hearing.model.contract
    points: list[dict[str, Any]] = [{"scale": 0.0, "accuracy": float(holds.mean())}]
    for scale in SCALES:
        changes = tuple(_scaled(change, scale) for change in rule.changes)
        surface = plan_surface(rows, contract=contract, changes=changes, constraints=hearing.policy.constraints)
        holds = holds & survives(surface)
        points.append({"scale": scale, "accuracy": float(holds.mean())})
    return points


def _scaled(change: Change, scale: float) -> Change:
    return change.model_copy(update={"up": change.up * scale, "down": change.down * scale})
