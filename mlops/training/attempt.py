"""What driver and workers say to each other: plain frozen values, the same for Ray, for one process and for fakes.

Leaves to others: carrying them (mlops/training/ray_group, mlops/training/local_group).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlops.datasets.reader import Batch


class Answer(enum.IntEnum):
    """What a trial does after a report."""

    CONTINUE = 0
    PRUNE = 1
    """Stop here: it is not promising."""
    YIELD = 2
    """Commit a checkpoint and stop here: the machines are needed, or the lease ends."""


AttemptKey = tuple[str, int, int]
"""Sweep, trial and attempt."""


@dataclass(frozen=True)
class AttemptTask:
    """One run of a trial, for every worker of a group."""

    sweep_id: str
    trial: int
    attempt: int
    params: Mapping[str, Any]
    """The trial's parameters with the reserved ones."""
    seed: int
    epochs: int
    trainer_file: str
    trainer_digest: str
    trial_folder: str
    """Where checkpoints and weights go."""
    checkpoint_epochs: int
    required_metrics: tuple[str, ...]
    audit_pool: int = 0
    """Rows of the pool; 0 is none."""
    audit_seed: int = 0
    slices: tuple[tuple[int, ...], ...] = ()
    """Of a member of an ensemble: isolation groups by slice. Its epochs are shared equally by as many stages; stage r
    reads slices 0 to r, and leaves a checkpoint. Empty: the whole train split."""
    slice_folders: tuple[str, ...] = ()
    """Where the checkpoint of each stage goes and is looked for."""
    most_workers: int = 1
    """Of an elastic group; with fewer, each takes its part of a batch in several pieces."""

    @property
    def key(self) -> AttemptKey:
        """Which attempt it is."""
        return self.sweep_id, self.trial, self.attempt

    @property
    def stage_epochs(self) -> int:
        """Epochs of each stage."""
        return self.epochs // max(1, len(self.slices))


SYSTEM_PREFIX = "system/"
"""Names of what the machine measured begin so; MLflow shows them apart."""


def split_system(numbers: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """What the trainer reported, and what the machine measured."""
    own = {name: value for name, value in numbers.items() if not name.startswith(SYSTEM_PREFIX)}
    return own, {name: value for name, value in numbers.items() if name not in own}


@dataclass(frozen=True)
class Reported:
    """A trial finished an epoch and waits for the answer; after its last epoch none is given."""

    group: str
    trial: int
    attempt: int
    epoch: int
    """From 0."""
    metrics: Mapping[str, float]
    system: Mapping[str, float] = field(default_factory=dict)
    """What the machine measured: shown to people, no part of the result."""

    @classmethod
    def of(cls, group: str, task: AttemptTask, *, epoch: int, numbers: Mapping[str, float]) -> Reported:
        """The report of a worker, whose `numbers` hold both."""
        own, system = split_system(numbers)
        return cls(group, task.trial, task.attempt, epoch, own, system)


@dataclass(frozen=True)
class Usage:
    """Where an attempt's time went, over the slowest worker."""

    busy_us: int
    data_wait_us: int
    peak_memory_bytes: int = 0
    growth_bytes: int = 0
    """Memory of the worker's own that it holds more than right after its start."""


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended on one worker."""

    outcome: str
    """As in `Ended`."""
    usage: Usage
    weights_file: str = ""
    weights_sha256: str = ""
    reason: str = ""
    last_report: tuple[int, Mapping[str, float]] | None = None
    """Epoch and metrics of the last epoch, where they travel with the end."""
    has_lost_peer: bool = False
    """It is `lost` because another worker went away: why is that one's to say, or that of who sees it die."""

    @property
    def is_bad(self) -> bool:
        """`failed` or `lost`."""
        return self.outcome in ("failed", "lost")


def choose_result(by_rank: Mapping[int, AttemptResult]) -> AttemptResult:
    """What the workers of a group say together: what went wrong where it began, else what the first one says.

    When a worker failed, what the others say follows from it; they often have no reason, or only that it left.
    """
    worst = min(by_rank.values(), key=lambda result: (not result.is_bad, result.has_lost_peer, not result.reason))
    return worst if worst.is_bad else by_rank[0]


@dataclass(frozen=True)
class Ended:
    """An attempt came to its end."""

    group: str
    trial: int
    attempt: int
    outcome: str
    """`complete`, `pruned`, `yielded`, `failed` (the trainer's fault) or `lost` (the group's, or the storage's)."""
    usage: Usage
    weights_file: str = ""
    weights_sha256: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Ready:
    """A group has all its workers."""

    group: str
    device: str
    """`cpu` or `cuda`."""
    start_us: int
    """How long it took."""


@dataclass(frozen=True)
class Gone:
    """A group is no more: it could not start, a worker died, or its lease ran out."""

    group: str
    reason: str
    is_preemption: bool = False
    """Its machine was taken away; counted apart from failures."""
    is_hopeless: bool = False
    """No other group would start either."""


@dataclass(frozen=True)
class Progressed:
    """A trial has done steps since it was last heard of."""

    group: str
    trial: int
    """That runs now; -1 is none."""
    epoch: int
    """From 0."""
    steps: int
    """Over training rows, in that epoch."""


@dataclass(frozen=True)
class Notice:
    """A group's machine will be taken away: a drained node, a spot notice."""

    group: str
    seconds: float
    """Until then."""
    reason: str


Event = Reported | Ended | Ready | Gone | Progressed | Notice


def sum_up(group: str, task: AttemptTask, by_rank: Mapping[int, AttemptResult]) -> tuple[Event, ...]:
    """The report of the last epoch, where it travelled with the end, and the end of an attempt on a whole group."""
    results, chosen = by_rank.values(), choose_result(by_rank)
    first = by_rank.get(0, chosen)
    is_complete = chosen.outcome == "complete"
    usage = Usage(
        busy_us=max(result.usage.busy_us for result in results),
        data_wait_us=max(result.usage.data_wait_us for result in results),
        peak_memory_bytes=max(result.usage.peak_memory_bytes for result in results),
        growth_bytes=max(result.usage.growth_bytes for result in results),
    )
    ended = Ended(
        group,
        task.trial,
        task.attempt,
        chosen.outcome,
        usage,
        weights_file=first.weights_file if is_complete else "",
        weights_sha256=first.weights_sha256 if is_complete else "",
        reason=chosen.reason,
    )
    if first.last_report is None:
        return (ended,)
    epoch, numbers = first.last_report
    return Reported.of(group, task, epoch=epoch, numbers=numbers), ended


@dataclass(frozen=True)
class GroupShape:
    """What a worker group is made of; groups of equal shape are interchangeable."""

    workers: int
    accelerator_kind: str
    accelerators_per_worker: float


class BatchSource(Protocol):
    """What a worker reads from (`mlops.datasets.reader.ShardReader` has it)."""

    def count_rows(self, split: str) -> int:
        """Rows of a split."""
        ...

    def of_groups(self, groups: frozenset[int]) -> BatchSource:
        """The same rows, but only of these isolation groups."""
        ...

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        shuffle: bool = True,
        pin: bool = False,
    ) -> Iterator[Batch]:
        """This rank's part of each global batch."""
        ...


class Crew(Protocol):
    """Worker groups as the driver sees them."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a group takes a second attempt while one runs, and begins it by itself when that one has ended."""
        ...

    def start_group(self, name: str, *, shape: GroupShape, until_us: int, start_deadline_seconds: float) -> None:
        """Begin to place all workers or none; ends in `Ready` or `Gone`.

        Workers exit by themselves at `until_us`, which is a time of the driver's monotonic clock.
        """
        ...

    def likeness(self, shape: GroupShape) -> str:
        """Digest of all that a kept group must have in common with one of this crew; empty: groups are not kept."""
        ...

    def adopt_group(self, name: str, *, shape: GroupShape, until_us: int) -> bool:
        """Take over the kept group of that name; as `start_group` when True, and nothing of it lives when False."""
        ...

    def keep_group(self, name: str, *, until_us: int) -> bool:
        """Let go of a group without a trial whose workers wait until then for another crew; False when it is broken."""
        ...

    def end_left_over(self, names: Iterable[str]) -> list[str]:
        """End what still lives of groups that no driver holds; gives the names of those that were found."""
        ...

    def extend(self, name: str, *, until_us: int) -> None:
        """Move the time at which a group's workers exit, on the driver's monotonic clock."""
        ...

    def begin(self, name: str, task: AttemptTask) -> None:
        """Run an attempt, after the one that runs there; ends in `Ended` or `Gone`."""
        ...

    def answer(self, name: str, answer: Answer) -> None:
        """Let a trial that reported go on, or not."""
        ...

    def ask_yield(self, name: str) -> None:
        """Let what a group runs, and is to run, commit a checkpoint at its next step and end as `yielded`."""
        ...

    def stop_group(self, name: str) -> None:
        """End the workers and give the place back; returns when no worker lives."""
        ...

    def next_events(self, *, timeout_seconds: float) -> list[Event]:
        """What happened; waits for the first."""
        ...

    def close(self) -> None:
        """End every group."""
        ...
