"""Worker groups on Ray: actors in one placement group, all or none, kept warm between trials.

The process group, imports and decoded shards stay from trial to trial; model, optimizer and random state do not. A
group in which a worker died or failed alone is given up as a whole.
Leaves to others: Ray itself (mlops/training/ray_cluster), what runs inside (mlops/training/ray_worker), when to start
and stop groups (mlops/training/sweep_driver).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mlops.clock import SECOND_US
from mlops.training.attempt import Answer, AttemptTask, Ended, Event, Gone, GroupShape, Ready, Reported, Usage
from mlops.training.ray_worker import WorkerSetup, make_actor_class

STRAGGLER_SECONDS = 20.0
"""When one worker of an attempt has ended, the others must end within this, or the group is given up."""


@dataclass
class _Group:
    name: str
    placement: Any
    actors: list[Any]
    shape: GroupShape
    until_us: int
    started_us: int
    start_limit_us: int
    pids: list[tuple[str, int]] = field(default_factory=list)
    """(node, pid) of every worker."""
    offsets: list[int] = field(default_factory=list)
    """Worker's monotonic clock minus ours, never too late."""
    device: str = ""
    task: AttemptTask | None = None
    results: dict[int, Any] = field(default_factory=dict)
    first_end_us: int = 0


class RayCrew:
    """Worker groups of one driver; implements `Crew`."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._groups: dict[str, _Group] = {}
        self._waiting: dict[Any, tuple[str, str, int]] = {}
        """Reference to (group, what, rank)."""
        self._queued: list[Event] = []

    def start_group(self, name: str, *, shape: GroupShape, until_us: int, start_deadline_seconds: float) -> None:
        """See `Crew`."""
        bundle = _bundle(shape)
        placement = placement_group([bundle] * shape.workers, strategy="PACK")
        actor_class = make_actor_class()
        strategy = PlacementGroupSchedulingStrategy(placement_group=placement)
        actors = [
            actor_class.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources={key: value for key, value in bundle.items() if key not in ("CPU", "GPU")},
                scheduling_strategy=strategy,
                max_concurrency=4,
                max_restarts=0,
            ).remote(self._setup, (until_us - _now_us()) // 1)
            for _ in range(shape.workers)
        ]
        now_us = _now_us()
        limit_us = now_us + round(start_deadline_seconds * SECOND_US)
        group = _Group(name, placement, actors, shape, until_us, now_us, limit_us)
        self._groups[name] = group
        for rank, actor in enumerate(actors):
            self._waiting[actor.describe.remote()] = (name, "describe", rank)

    def extend(self, name: str, *, until_us: int) -> None:
        """See `Crew`."""
        group = self._groups.get(name)
        if group is None:
            return
        group.until_us = until_us
        for actor, offset in zip(group.actors, group.offsets, strict=False):
            actor.extend.remote(until_us + offset)

    def begin(self, name: str, task: AttemptTask) -> None:
        """See `Crew`."""
        group = self._groups[name]
        group.task, group.results, group.first_end_us = task, {}, 0
        for rank, actor in enumerate(group.actors):
            self._waiting[actor.run.remote(task)] = (name, "run", rank)
        self._waiting[group.actors[0].next_report.remote(None)] = (name, "report", 0)

    def answer(self, name: str, answer: Answer) -> None:
        """See `Crew`."""
        group = self._groups.get(name)
        if group is not None:
            self._waiting[group.actors[0].next_report.remote(int(answer))] = (name, "report", 0)

    def stop_group(self, name: str) -> None:
        """See `Crew`."""
        group = self._groups.pop(name, None)
        if group is None:
            return
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != name}
        for actor in group.actors:
            with contextlib.suppress(Exception):  # it may be dead already, which is what is wanted
                ray.kill(actor, no_restart=True)
        _await_death(group.pids)
        with contextlib.suppress(Exception):
            remove_placement_group(group.placement)

    def pids_of(self, name: str) -> list[int]:
        """Process ids of a group's workers, by rank."""
        return [pid for _, pid in self._groups[name].pids]

    def next_events(self, *, timeout_seconds: float) -> list[Event]:
        """See `Crew`."""
        if not self._queued and not self._waiting:
            time.sleep(timeout_seconds)
        elif not self._queued:
            references = list(self._waiting)
            done, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds)
            if done and len(references) > 1:
                done, _ = ray.wait(references, num_returns=len(references), timeout=0)
            for reference in done:
                if reference in self._waiting:  # else its group was given up meanwhile
                    self._take(reference)
        self._look_at_clocks()
        events, self._queued = self._queued, []
        return events

    def close(self) -> None:
        """See `Crew`."""
        for name in list(self._groups):
            self.stop_group(name)

    def _take(self, reference: Any) -> None:
        name, what, rank = self._waiting.pop(reference)
        group = self._groups[name]
        try:
            value = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._give_up(group, _explain(error, rank=rank))
            return
        except Exception as error:  # raised by our own code in the worker
            self._give_up(group, f"worker {rank}: {type(error).__name__}: {error}")
            return
        {"describe": self._described, "join": self._joined, "report": self._reported, "run": self._ran}[what](
            group, rank, value
        )

    def _described(self, group: _Group, rank: int, value: Any) -> None:
        group.results[rank] = (value, _now_us())
        if len(group.results) < group.shape.workers:
            return
        ordered = [group.results[rank] for rank in range(group.shape.workers)]
        group.pids = [(worker.node, worker.pid) for worker, _ in ordered]
        group.offsets = [worker.now_us - heard_us for worker, heard_us in ordered]
        first = ordered[0][0]
        group.results = {}
        for other, actor in enumerate(group.actors):
            reference = actor.join.remote(f"tcp://{first.address}:{first.port}", other, group.shape.workers)
            self._waiting[reference] = (group.name, "join", other)

    def _joined(self, group: _Group, rank: int, value: Any) -> None:
        group.results[rank] = value
        if len(group.results) == group.shape.workers:
            group.device, group.results, group.start_limit_us = str(value), {}, 0
            self._queued.append(Ready(group.name, group.device, start_us=_now_us() - group.started_us))

    def _reported(self, group: _Group, rank: int, value: Any) -> None:
        if value is not None and group.task is not None:
            epoch, metrics = value
            self._queued.append(Reported.of(group.name, group.task, epoch=epoch, numbers=metrics))

    def _ran(self, group: _Group, rank: int, value: Any) -> None:
        group.results[rank] = value
        group.first_end_us = group.first_end_us or _now_us()
        if len(group.results) == group.shape.workers:
            self._end_attempt(group)

    def _end_attempt(self, group: _Group, *, is_broken: bool = False) -> None:
        task, results = group.task, group.results
        assert task is not None
        # The one with a reason first: when one worker failed, what the others say follows from it.
        worst = min(results.values(), key=lambda result: (result.outcome != "failed", not result.reason))
        of_first = results.get(0, worst)
        usage = Usage(
            busy_us=max(result.usage.busy_us for result in results.values()),
            data_wait_us=max(result.usage.data_wait_us for result in results.values()),
            peak_memory_bytes=max(result.usage.peak_memory_bytes for result in results.values()),
        )
        chosen = worst if worst.outcome == "failed" else of_first
        group.task, group.results, group.first_end_us = None, {}, 0
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[:2] != (group.name, "report")}
        self._queued.append(
            Ended(
                group.name,
                task.trial,
                task.attempt,
                chosen.outcome,
                usage,
                weights_file=of_first.weights_file if chosen.outcome == "complete" else "",
                weights_sha256=of_first.weights_sha256 if chosen.outcome == "complete" else "",
                reason=chosen.reason,
            )
        )
        if chosen.outcome == "failed" or is_broken:
            self._give_up(group, "given up after its trial failed")  # what the trainer left behind is unknown

    def _look_at_clocks(self) -> None:
        now_us = _now_us()
        for group in list(self._groups.values()):
            if group.start_limit_us and now_us > group.start_limit_us:
                self._give_up(group, "no place for all its workers before the deadline")
            elif group.first_end_us and now_us - group.first_end_us > STRAGGLER_SECONDS * SECOND_US:
                self._end_attempt(group, is_broken=True)
            elif group.first_end_us and now_us - group.first_end_us > SECOND_US and _has_failed(group):
                self._end_attempt(group, is_broken=True)  # the others hang in a collective

    def _give_up(self, group: _Group, reason: str) -> None:
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != group.name}
        group.start_limit_us, group.first_end_us = 0, 0
        self._queued.append(Gone(group.name, reason))


def _has_failed(group: _Group) -> bool:
    return any(result.outcome == "failed" for result in group.results.values())


def _bundle(shape: GroupShape) -> dict[str, float]:
    """What one worker asks of Ray: CPUs, GPUs, or a resource named by the accelerator kind with one CPU."""
    if shape.accelerator_kind == "cpu":
        return {"CPU": shape.accelerators_per_worker}
    if shape.accelerator_kind.startswith("tpu"):
        return {"CPU": 1.0, shape.accelerator_kind: shape.accelerators_per_worker}
    return {"CPU": 1.0, "GPU": shape.accelerators_per_worker}


def _now_us() -> int:
    return time.monotonic_ns() // 1_000


def _await_death(pids: list[tuple[str, int]], *, timeout_seconds: float = 5.0) -> None:
    """Wait for the workers on this machine; those elsewhere end by their own watchdog at the latest."""
    here = [pid for node, pid in pids if node == os.uname().nodename]
    processes = []
    for pid in here:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=timeout_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _explain(error: Exception, *, rank: int) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    return f"worker {rank} died: {type(error).__name__}: {said}"[:300]
