"""What a driver knows of its trials and groups; all of it follows from the ledger and from what groups say.

Leaves to others: what to do with it (mlops/training/sweep_driver).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.training.attempt import GroupShape
from mlops.training.leasing import GroupLease
from mlops.training.spec import Value
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
    heard_us: int = 0
    """When it last said something, or got work; monotonic."""
    idle_since_us: int = 0
    begun_us: int = 0
    """When its trial began; monotonic."""
    trials_done: int = 0
    is_leaving: bool = False
    """It gets no further trial: its loss was heard, its machine is taken away, or it has run long enough."""
    yield_by_us: int | None = None
    """Its trial was asked to yield, and has until then."""
    is_preempted: bool = False

    @property
    def is_free(self) -> bool:
        """May get a trial."""
        return self.is_ready and self.trial is None and not self.is_leaving
