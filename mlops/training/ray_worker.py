"""What runs inside a Ray actor: one worker of a group, its watchdog, its process group, its talk with the driver.

Nothing of a trial stays here but decoded shards: model, optimizer and random state live in `run_attempt`.
Leaves to others: the trainer's `worker` (mlops/training/worker), placing actors (mlops/training/ray_group).
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from mlops.processes import collect_less
from mlops.provenance.confinement import call_confined, confine
from mlops.training.attempt import Answer, AttemptKey, AttemptResult, AttemptTask, BatchSource, Usage
from mlops.training.locked_environment import explain_difference
from mlops.training.watchdog import EXIT_UNPAID, Watchdog

JOIN_SECONDS = 60.0
_THIS_PROCESS = psutil.Process()
KEPT_TALKS = 3
"""An attempt that runs, one that follows it, and one that has just ended."""
LEAVE_SECONDS = 0.5
"""How long a worker whose lease ended tries to give its place back."""


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of a sweep is started with."""

    source: SourceRecipe
    keys_folder: str
    """Hidden from user code where the machine can do that."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Name to version of the driver's lock; a worker in another environment refuses to start. Empty: not asked."""


class SourceRecipe:
    """Makes the batch source inside the worker; picklable. The default reads a dataset version by `ShardReader`."""

    def __init__(self, version: Any, cache_folder: str) -> None:
        self.version = version
        self.cache_folder = cache_folder

    def open(self) -> BatchSource:
        """The source, in the worker's process."""
        from mlops.datasets.reader import ShardReader  # in the worker only: loads pyarrow

        return ShardReader(self.version, Path(self.cache_folder))


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs."""

    node: str
    pid: int
    address: str
    port: int
    """Free on rank 0, for the rendezvous."""
    now_us: int
    """Its monotonic clock."""
    device: str = ""
    """`cpu` or `cuda`, once it has joined its group."""
    ray_node: str = ""
    refusal: str = ""
    """Why it does not start, in a sentence."""


class _Talk:
    """What one attempt says to the driver and hears from it: the channel of `run_attempt`."""

    def __init__(self) -> None:
        self.reports: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue()
        self.answers: queue.Queue[int] = queue.Queue()
        self.last: tuple[int, dict[str, float]] | None = None
        self.steps, self.at = 0, (0, 0)
        """All of them; the epoch at hand, and its steps over training rows."""
        self.is_asked = self.has_ended = self.has_passed = False

    def step(self, *, epoch: int, done: int) -> bool:
        """See `Channel`."""
        self.steps, self.at = self.steps + 1, (epoch, done)
        return self.is_asked

    def report(self, *, epoch: int, metrics: Mapping[str, float]) -> Answer:
        """See `Channel`."""
        self.reports.put((epoch, dict(metrics)))
        return Answer(self.answers.get())

    def conclude(self, *, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Channel`; it travels with the result of `run`: one message and one record less."""
        self.last = (epoch, dict(metrics))

    def end(self) -> None:
        """Whoever waits for a report hears that none follows."""
        self.has_ended = True
        self.reports.put(None)


class WorkerActor:
    """One worker; its methods are called by the driver from several threads."""

    def __init__(self, setup: WorkerSetup, seconds_us: int) -> None:
        self._keys_folder = Path(setup.keys_folder)
        self._confined = threading.local()
        self._confine_thread()  # before any other thread starts: those inherit it
        self._watchdog = Watchdog(time.monotonic_ns() // 1_000 + seconds_us, end=_leave)
        os.environ.update(ORT_DISABLE_TELEMETRY="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        self._refusal = explain_difference(setup.pins)
        self._rank, self._world_size, self._device, self._kind = 0, 1, "cpu", ""
        if self._refusal:
            return  # nothing of this environment is used
        usual = gc.get_threshold()
        collect_less()
        import torch  # after the environment is set; costs two seconds, once per warm worker

        gc.set_threshold(*usual)  # a trainer's own cycles may hold a device's memory
        torch.set_num_threads(1)
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
        self._source, self._cache_folder = setup.source.open(), setup.source.cache_folder
        self._turn = threading.Condition()
        self._ended: AttemptKey | None = None
        self._awaited: AttemptKey | None = None
        self._has_run = self._is_spoiled = False
        """An attempt failed here: what it left behind is unknown."""
        self._talks: dict[AttemptKey, _Talk] = {}
        self._ended_steps, self._baseline_bytes = 0, 0

    def describe(self) -> WorkerPlace:
        """Where it runs, and a free port."""
        import ray  # this process is a Ray worker

        self._confine_thread()
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
        node, now_us = os.uname().nodename, time.monotonic_ns() // 1_000
        ray_node = ray.get_runtime_context().get_node_id()
        kind, refusal = self._kind, self._refusal
        return WorkerPlace(node, os.getpid(), address, port, now_us, device=kind, ray_node=ray_node, refusal=refusal)

    def join(self, rendezvous: str, rank: int, world_size: int) -> str:
        """Meet the other workers; gives the kind of device found."""
        from datetime import timedelta

        import torch

        self._confine_thread()
        self._rank, self._world_size = rank, world_size
        has_gpu = torch.cuda.is_available()
        self._device = f"cuda:{torch.cuda.current_device()}" if has_gpu else "cpu"
        if world_size > 1:
            if "127.0.0.1" in rendezvous:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            torch.distributed.init_process_group(
                "nccl" if has_gpu else "gloo",
                init_method=rendezvous,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
        gc.collect()
        self._baseline_bytes = _own_memory_bytes()
        gc.freeze()  # libraries stay for good: collecting after each trial looks at what the trial left only
        self._kind = "cuda" if has_gpu else "cpu"
        return self._kind

    def extend(self, until_us: int) -> None:
        """Move the deadline; the time is of this worker's monotonic clock."""
        self._confine_thread()  # Ray calls methods from threads of its own, and user code shares them
        self._watchdog.extend(until_us)

    def extend_by(self, seconds_us: int) -> None:
        """Move the deadline to so long from now: for a driver that does not know this worker's clock."""
        self.extend(time.monotonic_ns() // 1_000 + seconds_us)

    def run(self, task: AttemptTask, after: AttemptKey | None = None) -> AttemptResult:
        """One attempt, from fresh random state.

        Args:
            task: What is run.
            after: An attempt whose end is waited for; it was given to this worker before.
        """
        from mlops.training.worker import run_attempt

        self._confine_thread()
        talk = self._talk(task.key)
        if after is not None:
            with self._turn:
                self._awaited = after
                self._turn.wait_for(lambda: self._ended == after)
        if self._is_spoiled:  # the driver gives the group up; the others may still wait in the failed attempt
            return AttemptResult("lost", Usage(0, 0), reason="the attempt before it failed on this worker")
        is_sound = False
        try:
            attempt = partial(
                run_attempt,
                task,
                source=self._source,
                channel=talk,
                rank=self._rank,
                world_size=self._world_size,
                device=self._device,
                on_trained=lambda: self._pass_turn(task.key, is_early=True),
            )
            result = call_confined(attempt, writable=self._make_folders(task))
            is_sound = not result.is_bad
        finally:
            talk.end()
            gc.collect()
            if not self._has_run:  # what the first attempt loaded stays too
                gc.freeze()
            self._has_run = True
            self._empty_device_cache()
            growth = max(0, _own_memory_bytes() - self._baseline_bytes)
            self._is_spoiled |= not is_sound
            with self._turn:
                self._ended_steps += talk.steps
            self._pass_turn(task.key)
        usage = replace(result.usage, growth_bytes=growth)
        return replace(result, usage=usage, last_report=talk.last)

    def _make_folders(self, task: AttemptTask) -> list[Path]:
        """Where an attempt may write: its own folders, made now, and the cache that it reads through."""
        folders = [Path(folder) for folder in (task.trial_folder, *task.slice_folders, self._cache_folder)]
        with contextlib.suppress(OSError):  # storage that fails is the attempt's to say, when it writes
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        return folders

    def _pass_turn(self, key: AttemptKey, *, is_early: bool = False) -> None:
        """The attempt that waits for this one begins; early only when it waits already, which short attempts do."""
        with self._turn:
            talk = self._talks[key]
            if talk.has_passed or (is_early and self._awaited != key):
                return
            talk.has_passed, self._ended = True, key
            self._turn.notify_all()

    def next_report(self, key: AttemptKey, answer: int | None) -> tuple[int, dict[str, float]] | None:
        """Give the answer to an attempt's last report; wait for its next one, or None at its end."""
        self._confine_thread()
        talk = self._talk(key)
        if answer is not None:
            talk.answers.put(answer)
        return talk.reports.get()

    def ask_yield(self, key: AttemptKey) -> None:
        """Let this attempt yield at its next step."""
        self._talk(key).is_asked = True

    def progress(self) -> tuple[int, int, int, int]:
        """Steps since the start of this worker; the trial that runs (or -1), its epoch and the steps in that."""
        self._confine_thread()
        with self._turn:
            live = [(key, talk) for key, talk in self._talks.items() if talk.steps and not talk.has_ended]
            at_work = [it for it in live if not it[1].has_passed] or live  # else its weights are being written
            trial, at = (at_work[0][0][1], at_work[0][1].at) if at_work else (-1, (0, 0))
            return self._ended_steps + sum(talk.steps for _, talk in live), trial, *at

    def _talk(self, key: AttemptKey) -> _Talk:
        """The driver's calls come from several threads, in any order: whichever is first begins the talk."""
        with self._turn:
            if key not in self._talks:
                for old in list(self._talks)[:-KEPT_TALKS]:
                    del self._talks[old]
                self._talks[key] = _Talk()
            return self._talks[key]

    def _confine_thread(self) -> None:
        """Hide the keys from this thread, once, and from all that it starts."""
        if not getattr(self._confined, "is_done", False):
            confine(hidden=self._keys_folder)
            self._confined.is_done = True

    def _empty_device_cache(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache()


def _own_memory_bytes() -> int:
    """Without pages that are shared, such as decoded shards."""
    memory = _THIS_PROCESS.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _leave() -> None:
    """End this process, and its group's place with it: the driver that would give it back may be dead."""
    threading.Thread(target=_remove_placement, daemon=True).start()
    time.sleep(LEAVE_SECONDS)
    os._exit(EXIT_UNPAID)


def _remove_placement() -> None:
    import ray  # this process is a Ray worker

    with contextlib.suppress(Exception):  # whatever it is: the process ends anyway
        placement = ray.util.get_current_placement_group()
        if placement is not None:
            ray.util.remove_placement_group(placement)


def make_actor_class() -> Any:
    """The Ray actor class of a worker."""
    import ray

    return ray.remote(WorkerActor)
