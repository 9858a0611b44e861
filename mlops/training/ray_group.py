"""Worker groups on Ray: actors in one placement group, all or none, kept warm between trials.

The process group, imports and decoded shards stay from trial to trial; model, optimizer and random state do not. A
group in which a worker died or failed alone is given up as a whole.
Leaves to others: Ray itself (mlops/training/ray_cluster), what runs inside (mlops/training/ray_worker), when to start
and stop groups (mlops/training/sweep_driver).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mlops.clock import SECOND_US
from mlops.provenance.digest import digest_json
from mlops.training.attempt import (
    Answer,
    AttemptResult,
    AttemptTask,
    Event,
    Gone,
    GroupShape,
    Notice,
    Progressed,
    Ready,
    Reported,
    choose_result,
    sum_up,
)
from mlops.training.ray_nodes import find_draining_nodes, is_node_loss
from mlops.training.ray_worker import WorkerSetup, make_actor_class

FAILED_SECONDS = 1.0
"""When a worker of an attempt has failed, the others hang in a collective: they have so long to say the same."""
FATE_SECONDS = 30.0
"""When the connection to a worker broke, Ray has so long to see that it or its node died: it counts missed heartbeats
for some 20 s."""
ADOPT_SECONDS = 10.0
"""A kept group answers within this, or a new one is started."""
KEEP_SECONDS = 5.0
LOOK_SECONDS = 2.0
"""So often the driver asks how far trials are, and which nodes are drained."""


@dataclass
class _Run:
    """One attempt on all workers of a group."""

    task: AttemptTask
    results: dict[int, AttemptResult] = field(default_factory=dict)
    limit_us: int = 0
    """When it is given up, since a worker failed; 0 while none has."""


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
    heard: dict[int, Any] = field(default_factory=dict)
    """What its workers said while it starts."""
    runs: list[_Run] = field(default_factory=list)
    """The attempt that runs, and the one that follows it."""
    reporting: _Run | None = None
    """The attempt that an answer is for."""
    nodes: set[str] = field(default_factory=set)
    doubt: tuple[int, str] | None = None
    """A worker to which the connection broke, and what was said: dead or not, Ray does not know yet."""
    doubt_limit_us: int = 0
    steps: int = 0
    is_draining: bool = False
    is_joined: bool = False
    """It was kept by another driver, process group and all."""


class RayCrew:
    """Worker groups of one driver; implements `Crew`."""

    runs_ahead = True

    def __init__(self, setup: WorkerSetup, *, likeness: str = "") -> None:
        self._setup = setup
        self._likeness = likeness
        self._groups: dict[str, _Group] = {}
        self._waiting: dict[Any, tuple[str, str, int, _Run | None]] = {}
        """Reference to (group, what, rank, attempt)."""
        self._queued: list[Event] = []
        self._looked_us = 0

    def start_group(self, name: str, *, shape: GroupShape, until_us: int, start_deadline_seconds: float) -> None:
        """See `Crew`."""
        bundle = _bundle(shape)
        placement = placement_group([bundle] * shape.workers, strategy="PACK", name=name, lifetime="detached")
        actor_class = make_actor_class()
        strategy = PlacementGroupSchedulingStrategy(placement_group=placement)
        actors = [
            actor_class.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                resources={key: value for key, value in bundle.items() if key not in ("CPU", "GPU")},
                scheduling_strategy=strategy,
                max_concurrency=8,
                max_restarts=0,
                name=_actor_name(name, rank),
                lifetime="detached",  # so that it can be kept for the next sweep; its watchdog ends it when unpaid
            ).remote(self._setup, until_us - _now_us())
            for rank in range(shape.workers)
        ]
        now_us = _now_us()
        limit_us = now_us + round(start_deadline_seconds * SECOND_US)
        group = _Group(name, placement, actors, shape, until_us, now_us, limit_us)
        self._groups[name] = group
        for rank, actor in enumerate(actors):
            self._waiting[actor.describe.remote()] = (name, "describe", rank, None)

    def likeness(self, shape: GroupShape) -> str:
        """See `Crew`."""
        return digest_json({"setup": self._likeness, "shape": asdict(shape)}) if self._likeness else ""

    def adopt_group(self, name: str, *, shape: GroupShape, until_us: int) -> bool:
        """See `Crew`."""
        try:
            actors = [ray.get_actor(_actor_name(name, rank)) for rank in range(shape.workers)]
            placement = ray.util.get_placement_group(name)
        except ValueError:  # one of its workers, or the whole cluster, ended meanwhile
            self.end_left_over([name])
            return False
        now_us = _now_us()
        limit_us = now_us + round(ADOPT_SECONDS * SECOND_US)
        group = _Group(name, placement, actors, shape, until_us, now_us, limit_us, is_joined=True)
        self._groups[name] = group
        for rank, actor in enumerate(actors):
            actor.extend_by.remote(until_us - now_us)
            self._waiting[actor.describe.remote()] = (name, "describe", rank, None)
        return True

    def keep_group(self, name: str, *, until_us: int) -> bool:
        """See `Crew`."""
        group = self._groups.get(name)
        if group is None or group.runs or not group.device:
            return False
        try:
            ray.get([actor.extend_by.remote(until_us - _now_us()) for actor in group.actors], timeout=KEEP_SECONDS)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return False
        self._groups.pop(name)
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != name}
        return True

    def end_left_over(self, names: Iterable[str]) -> list[str]:
        """See `Crew`."""
        found = []
        for name in names:
            for rank in itertools.count():
                try:
                    ray.kill(ray.get_actor(_actor_name(name, rank)), no_restart=True)
                except ValueError:
                    break  # no worker of this rank
            with contextlib.suppress(ValueError):
                remove_placement_group(ray.util.get_placement_group(name))
                found.append(name)
        return found

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
        run, after = _Run(task), group.runs[-1].task.key if group.runs else None
        group.runs.append(run)
        for rank, actor in enumerate(group.actors):
            self._waiting[actor.run.remote(task, after)] = (name, "run", rank, run)
        if task.epochs > 1:  # the last one's report comes with the end
            self._await_report(group, run, answer=None)

    def answer(self, name: str, answer: Answer) -> None:
        """See `Crew`."""
        group = self._groups.get(name)
        if group is not None and group.reporting is not None:
            self._await_report(group, group.reporting, answer=answer)

    def ask_yield(self, name: str) -> None:
        """See `Crew`."""
        group = self._groups.get(name)
        for run in group.runs if group is not None else ():
            for actor in group.actors if group is not None else ():
                actor.ask_yield.remote(run.task.key)

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
        name, what, rank, run = self._waiting.pop(reference)
        group = self._groups[name]
        try:
            value = ray.get(reference)
        except ray.exceptions.ActorUnavailableError as error:
            if group.doubt is None:
                group.doubt = (rank, explain_death(error, rank=rank))
                group.doubt_limit_us = _now_us() + round(FATE_SECONDS * SECOND_US)
            return  # asked again in `_look_at_groups`
        except ray.exceptions.RayError as error:
            self._give_up(group, explain_death(error, rank=rank), is_preemption=is_node_loss(error))
            return
        except Exception as error:  # raised by our own code in the worker
            self._give_up(group, f"worker {rank}: {type(error).__name__}: {error}")
            return
        if what == "fate":
            self._give_up(group, group.doubt[1] if group.doubt else "")  # it lives, but what it was asked is lost
        elif run is not None:
            {"report": self._reported, "run": self._ran}[what](group, run, rank, value)
        else:
            {"describe": self._described, "join": self._joined, "progress": self._progressed}[what](group, rank, value)

    def _described(self, group: _Group, rank: int, value: Any) -> None:
        if value.refusal:
            text = f"worker {rank} on {value.node} refuses to start: {value.refusal}"
            self._give_up(group, text, is_hopeless=True)
            return
        group.heard[rank] = (value, _now_us())
        if len(group.heard) < group.shape.workers:
            return
        ordered = [group.heard[rank] for rank in range(group.shape.workers)]
        group.pids = [(worker.node, worker.pid) for worker, _ in ordered]
        group.nodes = {worker.ray_node for worker, _ in ordered}
        group.offsets = [worker.now_us - heard_us for worker, heard_us in ordered]
        first = ordered[0][0]
        group.heard = {}
        if group.is_joined:
            self._is_ready(group, first.device)
            return
        for other, actor in enumerate(group.actors):
            reference = actor.join.remote(f"tcp://{first.address}:{first.port}", other, group.shape.workers)
            self._waiting[reference] = (group.name, "join", other, None)

    def _joined(self, group: _Group, rank: int, value: Any) -> None:
        group.heard[rank] = value
        if len(group.heard) == group.shape.workers:
            group.heard = {}
            self._is_ready(group, str(value))

    def _is_ready(self, group: _Group, device: str) -> None:
        group.device, group.start_limit_us = device, 0
        self._queued.append(Ready(group.name, device, start_us=_now_us() - group.started_us))

    def _await_report(self, group: _Group, run: _Run, *, answer: Answer | None) -> None:
        given = None if answer is None else int(answer)
        self._waiting[group.actors[0].next_report.remote(run.task.key, given)] = (group.name, "report", 0, run)

    def _reported(self, group: _Group, run: _Run, rank: int, value: Any) -> None:
        if value is not None:
            group.reporting = run
            epoch, metrics = value
            self._queued.append(Reported.of(group.name, run.task, epoch=epoch, numbers=metrics))

    def _progressed(self, group: _Group, rank: int, value: Any) -> None:
        steps, trial, epoch, done = value
        if steps != group.steps:
            group.steps = steps
            self._queued.append(Progressed(group.name, trial, epoch, done))

    def _ran(self, group: _Group, run: _Run, rank: int, value: Any) -> None:
        run.results[rank] = value
        if value.is_bad:
            limit_us = _now_us() + round((FATE_SECONDS if value.has_lost_peer else FAILED_SECONDS) * SECOND_US)
            run.limit_us = min(run.limit_us or limit_us, limit_us)
        while group.runs and len(group.runs[0].results) == group.shape.workers:
            self._end_attempt(group)

    def _end_attempt(self, group: _Group) -> None:
        run = group.runs.pop(0)
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[3] is not run}
        self._queued += sum_up(group.name, run.task, run.results)
        if choose_result(run.results).is_bad:
            self._give_up(group, "given up after its trial failed")  # what the trainer left behind is unknown

    def _look_at_clocks(self) -> None:
        now_us = _now_us()
        if now_us - self._looked_us > LOOK_SECONDS * SECOND_US:
            self._looked_us = now_us
            self._look_at_groups()
        for group in list(self._groups.values()):
            if group.start_limit_us and now_us > group.start_limit_us:
                self._give_up(group, "no place for all its workers before the deadline")
                continue
            if group.doubt is not None and now_us > group.doubt_limit_us:
                self._give_up(group, group.doubt[1])
                continue
            run = group.runs[0] if group.runs else None
            if run is not None and run.limit_us and now_us > run.limit_us:
                self._end_attempt(group)

    def _look_at_groups(self) -> None:
        """Ask how far trials are, whether a worker lives, and whether the cluster takes a group's machine away."""
        asked = {(name, what) for name, what, _, _ in self._waiting.values()}
        for group in self._groups.values():
            if group.doubt is not None and (group.name, "fate") not in asked:
                rank, _ = group.doubt
                self._waiting[group.actors[rank].describe.remote()] = (group.name, "fate", rank, None)
            elif group.runs and group.doubt is None and (group.name, "progress") not in asked:
                self._waiting[group.actors[0].progress.remote()] = (group.name, "progress", 0, None)
        draining = find_draining_nodes() if self._groups else {}
        for group in self._groups.values():
            left = [draining[node] for node in group.nodes if node in draining]
            if left and not group.is_draining:
                group.is_draining = True
                self._queued.append(Notice(group.name, min(left), "its node is drained"))

    def _give_up(self, group: _Group, reason: str, *, is_preemption: bool = False, is_hopeless: bool = False) -> None:
        self._waiting = {ref: what for ref, what in self._waiting.items() if what[0] != group.name}
        group.start_limit_us, group.runs, group.doubt = 0, [], None
        self._queued.append(Gone(group.name, reason, is_preemption=is_preemption, is_hopeless=is_hopeless))


def _bundle(shape: GroupShape) -> dict[str, float]:
    """What one worker asks of Ray: CPUs, GPUs, or a resource named by the accelerator kind with one CPU."""
    if shape.accelerator_kind == "cpu":
        return {"CPU": shape.accelerators_per_worker}
    if shape.accelerator_kind.startswith("tpu"):
        return {"CPU": 1.0, shape.accelerator_kind: shape.accelerators_per_worker}
    return {"CPU": 1.0, "GPU": shape.accelerators_per_worker}


def _actor_name(group: str, rank: int) -> str:
    return f"{group}.{rank}"


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


def explain_death(error: Exception, *, rank: int) -> str:
    """Why a worker died, in a line; of one that could not begin, what was raised, which Ray says below the trace."""
    lines = str(error).strip().splitlines() or [""]
    if getattr(error, "actor_init_failed", False):
        raised = [line for line in lines[1:] if not line.startswith(" ")]
        return f"worker {rank} could not begin: {(raised or lines)[0]}"[:300]
    return f"worker {rank} died: {type(error).__name__}: {lines[0]}"[:300]
