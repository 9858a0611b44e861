"""Which training rows drove an answer: the sweep's trials that saw a row against those that did not.

The audit pool is in each trial row by row with probability 1/2, so the difference between both means is an unbiased
estimate of what the row added to the answer (Feldman & Zhang, NeurIPS 2020), with a standard error that says how little
a few trials show. Leaves to others: who may see training rows (mlops/overview/explanation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlops.evaluation.attributions import module_log_odds
from mlops.evaluation.twins import Twin
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.training.audit_pool import AuditMatrix

LEAST = 2
"""Trials with, and without, a row: below this there is no standard error."""


@dataclass(frozen=True)
class Influence:
    """What one row of the audit pool added to an answer."""

    row: int
    """Number in the train split, in manifest order."""
    log_odds: float
    """Mean of the trials that saw it minus mean of those that did not."""
    error: float
    """Standard error of the difference."""
    p_value: float
    """Chance that any of the pool's rows looks so clear by luck (t-test, Bonferroni over the pool)."""


def measure_influence(
    row: Mapping[str, NDArray[Any]], *, twins: tuple[Twin, ...], matrix: AuditMatrix, class_: int, count: int
) -> tuple[Influence, ...]:
    """The `count` pool rows with the clearest influence on the answer to `row`, clearest first.

    Raises:
        NotEvaluableError: Too few trials have their weights still.
    """
    known = [twin for twin in twins if twin.trial in matrix.trials]
    if len(known) < 2 * LEAST:
        raise NotEvaluableError("no-twins", f"{len(known)} trials of the sweep can be asked, {2 * LEAST} are needed")
    said = np.array([float(module_log_odds(twin.load_module(), class_=class_)(row)[0]) for twin in known])
    saw = np.stack([matrix.members[matrix.trials.index(twin.trial)] for twin in known])
    inside, outside = _mean_and_error(said, saw), _mean_and_error(said, ~saw)
    difference = inside[0] - outside[0]
    error = np.sqrt(inside[1] ** 2 + outside[1] ** 2)
    is_known = np.isfinite(error) & (error > 0)
    clearness = np.where(is_known, np.abs(difference) / np.where(is_known, error, 1.0), -1.0)
    order = np.lexsort((matrix.rows, -clearness))[:count]
    luck = np.minimum(1.0, 2 * stats.t.sf(clearness, len(known) - 2) * len(matrix.rows))
    return tuple(
        Influence(int(matrix.rows[index]), float(difference[index]), float(error[index]), float(luck[index]))
        for index in order
        if clearness[index] > 0
    )


def _mean_and_error(
    said: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the chosen trials and its standard error for each row; NaN below two trials."""
    size = chosen.sum(axis=0)
    enough = size >= LEAST
    mean = (said[:, None] * chosen).sum(axis=0) / np.maximum(size, 1)
    squares = (((said[:, None] - mean) ** 2) * chosen).sum(axis=0) / np.maximum(size - 1, 1)
    error = np.where(enough, np.sqrt(squares / np.maximum(size, 1)), np.nan)
    return mean, error
