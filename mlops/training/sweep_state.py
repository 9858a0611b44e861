"""What a driver knows of its trials and groups; all of it follows from the ledger and from what groups say.

Leaves to others: what to do with it (mlops/training/sweep_driver).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.training.attempt import AttemptTask, GroupShape
from mlops.training.leasing import GroupLease
from mlops.training.spec import MEMBER, SweepSpec, Value
from mlops.training.sql_trials import RUNNING, TrialRow


@dataclass(frozen=True)
class DriverTask:
    """What every attempt of the sweep shares."""

    trainer_file: Path
    trainer_digest: str
    reserved: Mapping[str, Any]
    """`columns` and `classes`."""
    checkpoints: Path
    holder: str
    spender: str
    earlier: tuple[TrialRow, ...] = ()
    """Trials of earlier sweeps that the sampler learns from."""
    members: Mapping[int, MemberTask] = field(default_factory=dict)
    """Of an ensemble: what the trial with this value of the parameter `member` reads; empty for a search."""

    def find_member(self, params: Mapping[str, Value]) -> MemberTask | None:
        """Which member of an ensemble a trial with these parameters trains; None in a search."""
        return self.members[int(params[MEMBER])] if self.members else None

    def make_attempt(self, trial: OpenTrial, *, spec: SweepSpec, sweep_id: str, folder: Path) -> AttemptTask:
        """What the workers are told of a trial's present attempt, which writes into `folder`."""
        needed = {objective.metric for objective in spec.objectives} | {c.metric for c in spec.constraints}
        member = self.find_member(trial.params)
        return AttemptTask(
            sweep_id=sweep_id,
            trial=trial.number,
            attempt=trial.attempt,
            params={**trial.params, **self.reserved},
            seed=trial.seed,
            epochs=spec.epochs,
            trainer_file=str(self.trainer_file),
            trainer_digest=self.trainer_digest,
            trial_folder=str(folder),
            checkpoint_epochs=spec.checkpoint_epochs,
            required_metrics=tuple(sorted(needed)),
            audit_pool=spec.audit_pool,
            audit_seed=spec.seed,
            slices=member.slices if member is not None else (),
            slice_folders=member.slice_folders if member is not None else (),
            most_workers=spec.workers,
        )


@dataclass(frozen=True)
class MemberTask:
    """What sets a member of an ensemble apart from a trial of a search."""

    seed: int
    slices: tuple[tuple[int, ...], ...]
    slice_folders: tuple[str, ...]


@dataclass
class OpenTrial:
    """A trial as its driver knows it."""

    number: int
    params: dict[str, Value]
    seed: int
    state: str = RUNNING
    metrics: dict[str, float] = field(default_factory=dict)
    attempt: int = -1
    failures: int = 0
    preemptions: int = 0
    is_waiting: bool = True
    """For a group."""


@dataclass
class HeldGroup:
    """A worker group of the driver, and the lease that pays for it."""

    lease: GroupLease
    key: str
    """Under which its place was asked for."""
    shape: GroupShape
    is_ready: bool = False
    trial: int | None = None
    following: int | None = None
    """The trial that the workers begin by themselves when that one has ended."""
    heard_us: int = 0
    """When it last said something, or got work; monotonic."""
    idle_since_us: int = 0
    begun_us: int = 0
    """When its trial began; monotonic."""
    trials_done: int = 0
    is_leaving: bool = False
    """It gets no further trial: its loss was heard, its machine is taken away, or it has run long enough."""
    is_lost: bool = False
    """Its loss was heard, and is yet to be dealt with."""
    yield_by_us: int | None = None
    """Its trial was asked to yield, and has until then."""
    is_preempted: bool = False

    @property
    def is_free(self) -> bool:
        """May get a trial."""
        return self.is_ready and self.trial is None and not self.is_leaving and self.lease.refusal is None

    @property
    def takes_following(self) -> bool:
        """May get a trial that follows the one it runs."""
        is_staying = not self.is_leaving and self.yield_by_us is None and self.lease.refusal is None
        return self.trial is not None and self.following is None and is_staying
