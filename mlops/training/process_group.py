"""Worker groups as plain processes on this machine: no cluster, for one trial by hand and for rebuilds.

Bit for bit what a group on Ray gives: the same worker code runs, and every process is confined from its first
instruction.
Leaves to others: what runs inside (process_worker.py), clusters (ray_group.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mlops.clock import SECOND_US
from mlops.datasets.version import DatasetVersion
from mlops.places import Places
from mlops.provenance.confinement import confined_command
from mlops.training.attempt import (
    Answer,
    AttemptResult,
    AttemptTask,
    Event,
    Gone,
    GroupShape,
    Ready,
    Reported,
    Usage,
    sum_up,
)

_STOP_SECONDS = 5.0


@dataclass
class _Group:
    processes: list[subprocess.Popen[str]]
    started_us: int
    limit_us: int
    ready: dict[int, str] = field(default_factory=dict)
    ended: dict[int, AttemptResult] = field(default_factory=dict)
    task: AttemptTask | None = None


class ProcessCrew:
    """Worker groups of one driver on this machine; implements `Crew`."""

    runs_ahead = False

    def __init__(self, places: Places, version: DatasetVersion) -> None:
        self._places = places
        self._version = version
        self._groups: dict[str, _Group] = {}
        self._heard: queue.Queue[tuple[str, int, dict[str, Any]]] = queue.Queue()

    def start_group(self, name: str, *, shape: GroupShape, until_us: int, start_deadline_seconds: float) -> None:
        """See `Crew`."""
        for folder in (self._places.keys_folder, self._places.cache, self._places.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)  # confined workers cannot make folders beside the keys
        now_us, port = _now_us(), find_free_port()
        processes = [
            self._spawn(rank, shape=shape, port=port, seconds_us=until_us - now_us) for rank in range(shape.workers)
        ]
        self._groups[name] = _Group(processes, now_us, now_us + round(start_deadline_seconds * SECOND_US))
        for rank, process in enumerate(processes):
            threading.Thread(target=self._hear, args=(name, rank, process), daemon=True).start()

    def likeness(self, shape: GroupShape) -> str:
        """See `Crew`; these workers end with their driver."""
        return ""

    def adopt_group(self, name: str, *, shape: GroupShape, until_us: int) -> bool:
        """See `Crew`."""
        return False

    def keep_group(self, name: str, *, until_us: int) -> bool:
        """See `Crew`."""
        return False

    def end_left_over(self, names: Iterable[str]) -> list[str]:
        """See `Crew`; they ended with their driver."""
        return []

    def extend(self, name: str, *, until_us: int) -> None:
        """See `Crew`; processes of one machine share the monotonic clock."""
        self._tell(name, {"extend": until_us})

    def begin(self, name: str, task: AttemptTask) -> None:
        """See `Crew`."""
        self._groups[name].task, self._groups[name].ended = task, {}
        self._tell(name, {"task": asdict(task)})

    def answer(self, name: str, answer: Answer) -> None:
        """See `Crew`."""
        self._tell(name, {"answer": int(answer)}, ranks=(0,))

    def ask_yield(self, name: str) -> None:
        """See `Crew`."""
        if name in self._groups and self._groups[name].task is not None:
            self._tell(name, {"yield": True})

    def stop_group(self, name: str) -> None:
        """See `Crew`."""
        group = self._groups.pop(name, None)
        for process in group.processes if group else []:
            process.kill()
        for process in group.processes if group else []:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def next_events(self, *, timeout_seconds: float) -> list[Event]:
        """See `Crew`."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events += self._take(*self._heard.get(timeout=timeout_seconds))
            while True:
                events += self._take(*self._heard.get_nowait())
        now_us = _now_us()
        for name, group in self._groups.items():
            if len(group.ready) < len(group.processes) and now_us > group.limit_us:
                events.append(Gone(name, "its workers did not start before the deadline"))
        return events

    def close(self) -> None:
        """See `Crew`."""
        for name in list(self._groups):
            self.stop_group(name)

    def _spawn(self, rank: int, *, shape: GroupShape, port: int, seconds_us: int) -> subprocess.Popen[str]:
        setup = {
            "root": str(self._places.root),
            "dataset": self._version.name,
            "dvc_digest": self._version.dvc_digest,
            "cache": str(self._places.cache / "decoded"),
            "rank": rank,
            "world_size": shape.workers,
            "port": port,
            "seconds_us": seconds_us,
        }
        command = (sys.executable, "-P", "-m", "mlops.training.process_worker", json.dumps(setup))
        confined, _ = confined_command(command, hidden=self._places.keys_folder)
        device = {} if shape.accelerator_kind == "cpu" else {"CUDA_VISIBLE_DEVICES": str(rank)}
        return subprocess.Popen(
            confined,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **device},
            cwd=self._places.root,
        )

    def _hear(self, name: str, rank: int, process: subprocess.Popen[str]) -> None:
        stream = process.stdout
        assert stream is not None
        with contextlib.suppress(ValueError, OSError):  # closed by `stop_group`
            for line in stream:
                self._heard.put((name, rank, json.loads(line)))
        self._heard.put((name, rank, {"exit": process.wait()}))

    def _tell(self, name: str, message: dict[str, Any], *, ranks: tuple[int, ...] | None = None) -> None:
        group = self._groups.get(name)
        for rank, process in enumerate(group.processes if group else []):
            if (ranks is None or rank in ranks) and process.stdin is not None:
                with contextlib.suppress(OSError):  # it died: its reader says so
                    process.stdin.write(json.dumps(message) + "\n")
                    process.stdin.flush()

    def _take(self, name: str, rank: int, message: dict[str, Any]) -> list[Event]:
        group = self._groups.get(name)
        if group is None:
            return []
        if "ready" in message:
            group.ready[rank] = message["ready"]
            is_last = len(group.ready) == len(group.processes)
            return [Ready(name, message["ready"], start_us=_now_us() - group.started_us)] if is_last else []
        if "report" in message and group.task is not None:
            epoch, metrics = message["report"]
            return [Reported.of(name, group.task, epoch=epoch, numbers=metrics)]
        if message.get("ended") and group.task is not None:
            said = message["ended"]
            group.ended[rank] = AttemptResult(**{**said, "usage": Usage(**said["usage"])})
            return list(sum_up(name, group.task, group.ended)) if len(group.ended) == len(group.processes) else []
        reason = message.get("reason") or f"exit code {message.get('exit')}"
        return [Gone(name, f"worker {rank} died: {reason}")]


def find_free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
