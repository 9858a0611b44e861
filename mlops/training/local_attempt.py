"""One attempt in this process, without Ray or a lease: for the contract check and for trials by hand.

Leaves to others: what a trial is (mlops/training/worker), checking the contract (mlops/training/check).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.training.attempt import Answer, AttemptResult, AttemptTask, BatchSource, split_system
from mlops.training.seeds import derive_seed
from mlops.training.spec import SweepSpec
from mlops.training.worker import run_attempt


@dataclass
class LocalChannel:
    """Keeps reports, shows them, and answers `yield_after` with a yield."""

    say: Callable[[str], None] = lambda line: None
    yield_after: int | None = None
    """Epochs after which the attempt is asked to yield."""
    yield_at_step: int | None = None
    """Step, counted from 1 over all batches, at which it is asked to yield."""
    steps: int = 0
    reports: list[dict[str, float]] = field(default_factory=list)

    def step(self, *, epoch: int, done: int) -> bool:
        """See `mlops.training.worker.Channel`."""
        self.steps += 1
        return self.yield_at_step == self.steps

    def report(self, *, epoch: int, metrics: Mapping[str, float]) -> Answer:
        """See `mlops.training.worker.Channel`."""
        own, _ = split_system(metrics)
        self.reports.append(own)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in own.items())
        self.say(f"epoch {epoch + 1}: {shown}")
        return Answer.YIELD if self.yield_after == epoch + 1 else Answer.CONTINUE

    def conclude(self, *, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `mlops.training.worker.Channel`."""
        self.report(epoch=epoch, metrics=metrics)


@dataclass(frozen=True)
class LocalTrial:
    """What is run by hand."""

    spec: SweepSpec
    trainer_file: Path
    params: Mapping[str, Any]
    """Without the reserved ones."""
    reserved: Mapping[str, Any]
    folder: Path
    seed: int
    epochs: int
    attempt: int = 0

    def task(self) -> AttemptTask:
        """The same task that a worker group would get."""
        needed = {objective.metric for objective in self.spec.objectives} | {c.metric for c in self.spec.constraints}
        return AttemptTask(
            sweep_id="by-hand",
            trial=0,
            attempt=self.attempt,
            params={**self.params, **self.reserved},
            seed=self.seed,
            epochs=self.epochs,
            trainer_file=str(self.trainer_file),
            trainer_digest="",
            trial_folder=str(self.folder),
            checkpoint_epochs=1,
            required_metrics=tuple(sorted(needed)),
            audit_pool=self.spec.audit_pool,
            audit_seed=self.spec.seed,
        )


def run_local(trial: LocalTrial, *, source: BatchSource, channel: LocalChannel) -> AttemptResult:
    """Run the trial here, breakpoints working; exceptions of the trainer become a `failed` result."""
    return run_attempt(trial.task(), source=source, channel=channel, rank=0, world_size=1, device="cpu")


def first_point(spec: SweepSpec) -> dict[str, Any]:
    """Parameters in the middle of the space: what a check runs with."""
    from mlops.training.optuna_search import middle_point  # loads optuna

    return middle_point(spec)


def seed_of_trial(spec: SweepSpec, number: int) -> int:
    """The seed that trial `number` of the sweep has."""
    return derive_seed(spec.seed, "trial", number)
