"""Sweep twins: trials of the candidate's own sweep that did nearly as well, and might have won by another seed.

Leaves to others: what follows from their answers (checks/explainability.py), the sweep itself (mlops/training).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.ledger.connection import Ledger
from mlops.training import sql_trials
from mlops.training.candidate import Candidate
from mlops.training.sql_trials import COMPLETE
from mlops.training.trainer import load_trainer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Twin:
    """One finished trial beside the winner."""

    trial: int
    distance: float
    """Of its objective from the winner's."""
    digest: str
    """Of its weights, for keys of caches."""
    load_module: Callable[[], torch.nn.Module]
    """Its module in evaluation mode."""


def near(twins: tuple[Twin, ...], *, within: float) -> tuple[Twin, ...]:
    """Those whose objective is at most `within` away from the winner's."""
    return tuple(twin for twin in twins if twin.distance <= within)


def find_twins(ledger: Ledger, candidate: Candidate, *, with_winner: bool = False) -> tuple[Twin, ...]:
    """The finished trials of the candidate's sweep whose weights are still there, nearest first; without the winner."""
    origin = json.loads((candidate.folder / "params.json").read_text(encoding="utf-8"))
    with ledger.read() as connection:
        sweep = sql_trials.find_sweep(connection, str(origin.get("sweep", "")) or "-")
        trials = [] if sweep is None else sql_trials.list_trials(connection, sweep.sweep_id)
    winner = next((trial for trial in trials if trial.number == origin.get("trial")), None)
    if sweep is None or winner is None:
        return ()
    objective = sweep.spec["objective"]
    metric = (objective if isinstance(objective, dict) else objective[0])["metric"]
    found = [
        Twin(
            trial=trial.number,
            distance=abs(trial.metrics[metric] - winner.metrics[metric]),
            digest=trial.weights_sha256,
            load_module=_Loader(candidate, trial.params, Path(trial.weights_file)),
        )
        for trial in trials
        if trial.state == COMPLETE
        and (with_winner or trial.number != winner.number)
        and metric in trial.metrics
        and metric in winner.metrics
        and Path(trial.weights_file).is_file()
    ]
    return tuple(sorted(found, key=lambda twin: (twin.distance, twin.trial)))


@dataclass(frozen=True)
class _Loader:
    """Picklable, so that a twin can be loaded on another machine."""

    candidate: Candidate
    params: dict[str, Any]
    weights_file: Path

    def __call__(self) -> torch.nn.Module:
        from safetensors.torch import load_file  # loads torch, which costs seconds

        contract = self.candidate.contract
        full = {**self.params, "columns": contract.column_sizes(), "classes": len(contract.classes)}
        module: torch.nn.Module = load_trainer(self.candidate.folder / "trainer.py").model(full)
        module.load_state_dict(load_file(self.weights_file), strict=True)
        return module.eval()
