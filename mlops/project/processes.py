"""Processes and locks of a project: who works in it now, who holds what, and which Ray processes lost their owner.

Leaves to others: ending any of them (`mlops stop`, people).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from mlops.deploy.runtime_podman import PodmanRuntime
from mlops.deploy.runtimes import list_runtimes
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.project.diagnosis import Diagnosis
from mlops.serving.probe_scratch import find_left_over
from mlops.training import sql_trials
from mlops.training.ray_cluster import find_local
from mlops.training.sweep_view import show_state

_RAY_PROGRAMS = ("raylet", "gcs_server")
_WORKER = "ray::WorkerActor"


@dataclass(frozen=True)
class HeldLock:
    """A lock file that a process holds."""

    path: str
    """Relative to the project."""
    pid: int
    command: str

    def render_holder(self) -> str:
        """`process 123 (mlops release income)`."""
        return f"process {self.pid} ({self.command})" if self.pid else "a process of another user"


@dataclass(frozen=True)
class ProjectProcess:
    """A process that works in a project."""

    pid: int
    command: str
    started: str
    """UTC."""
    cpu_seconds: float
    memory_bytes: int
    open_files: tuple[str, ...]
    """Inside the project's `.mlops/`, relative to the project."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def list_processes(places: Places) -> tuple[ProjectProcess, ...]:
    """Processes with files open below `.mlops/`, or that were started for this project, oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            opened = _open_state_files(process.pid, places)
            is_named = str(places.state) in " ".join(process.cmdline())
            if opened or is_named:
                found.append((process.create_time(), _describe(process, opened)))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return tuple(process for _, process in sorted(found, key=lambda pair: pair[0]))


def find_held_locks(places: Places) -> tuple[HeldLock, ...]:
    """Lock files below `.mlops/` that somebody holds now (from /proc/locks: nothing is locked to find out)."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    held: dict[int, int] = {}
    for line in lines:
        fields = line.split()
        if "->" not in fields and len(fields) >= 6:
            held[int(fields[5].rpartition(":")[2])] = int(fields[4])
    found = []
    for path in sorted(places.state.rglob("*.lock")) if places.state.exists() else ():
        try:
            pid = held.get(path.stat().st_ino)
        except OSError:
            continue
        if pid is not None and pid != os.getpid():
            found.append(HeldLock(path.relative_to(places.root).as_posix(), max(pid, 0), _command_of(pid)))
    return tuple(found)


def find_run_leftovers(places: Places, *, ledger: Ledger, now_us: int) -> Iterator[Diagnosis]:
    """Sweeps whose driver died, and worker processes that no living driver has."""
    with ledger.read() as connection:
        rows = sql_trials.list_sweeps(connection, product=None)
        leases = {row.sweep_id: sql_trials.list_group_leases(connection, row.sweep_id) for row in rows}
    running = [row for row in rows if row.state == "running"]
    dead = [row for row in running if show_state(row, now_us=now_us) == "interrupted"]
    for row in dead:
        groups = [lease.worker_group for lease in leases[row.sweep_id] if lease.ended_us is None]
        held = f"; {len(groups)} worker groups held leases: {', '.join(groups)}" if groups else ""
        hint = f"`mlops sweep resume {row.sweep_id}` {'gives them back and goes on' if groups else 'goes on with it'}"
        yield Diagnosis(row.sweep_id, "note", f"its driver {row.driver} is dead{held}", hint=hint)
    workers = list(_list_workers(places))
    if workers and len(dead) == len(running):
        items = tuple(f"process {pid}: {_command_of(pid)[:80]}" for pid in workers)
        hint = "warm groups end by themselves when their paid time is over; `mlops stop` ends them now"
        yield Diagnosis("workers", "note", f"{len(workers)} without a driver", items=items, hint=hint)


def find_probe_leftovers(places: Places) -> Iterator[Diagnosis]:
    """Images that a killed probe or `mlops image run` left running."""
    for runtime in list_runtimes(places.serving_state):
        if isinstance(runtime, PodmanRuntime) and runtime.is_released():
            continue  # asking would make its link again
        for instance in find_left_over(runtime):
            yield Diagnosis(instance.name, "note", f"runs on {runtime.name}, its command is dead", hint="`mlops stop`")


def _list_workers(places: Places) -> Iterator[int]:
    local = find_local(places)
    try:
        found = psutil.Process(local.pid).children(recursive=True) if local is not None else []
    except psutil.NoSuchProcess:
        return
    for process in found:
        if _WORKER in _name_of(process):
            yield process.pid


def _name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def find_ray_leftovers(places: Places | None) -> Iterator[Diagnosis]:
    """Ray processes whose keeper is gone, and temporary folders of clusters that ended."""
    local = find_local(places) if places is not None else None
    if local is not None:
        yield Diagnosis("Ray", "fine", f"runs at {local.address} for this project ({local.cpus} CPUs)")
    orphans = []
    living: set[str] = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if "mlops-ray-" not in command:
            continue
        living.add(command)
        if process.info["name"] in _RAY_PROGRAMS and not _has_keeper(process):
            orphans.append(process.pid)
    if orphans:
        items = tuple(f"process {pid}: {_command_of(pid)[:80]}" for pid in orphans)
        hint = f"end them: `kill {' '.join(map(str, orphans))}`"
        yield Diagnosis("Ray", "note", f"{len(orphans)} processes without their keeper", items=items, hint=hint)
    dead = tuple(
        str(folder)
        for folder in sorted(Path("/tmp").glob("mlops-ray-*"))  # noqa: S108 - where Ray's short sockets lie
        if not any(str(folder) in command for command in living)
    )
    if dead:
        yield Diagnosis(
            "Ray", "note", f"{len(dead)} folders of ended clusters", dead, f"remove: `rm -r {' '.join(dead)}`"
        )


def _has_keeper(process: psutil.Process) -> bool:
    try:
        return any("mlops.training.ray_keeper" in " ".join(parent.cmdline()) for parent in process.parents())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return True  # it ended while we looked, or belongs to somebody else


def _open_state_files(pid: int, places: Places) -> tuple[str, ...]:
    """From /proc: psutil's own list leaves out deleted files and costs ten times as much."""
    opened = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = link.readlink()
            except OSError:
                continue
            if target.is_relative_to(places.state):
                opened.add(target.relative_to(places.root).as_posix())
    except OSError:
        return ()
    return tuple(sorted(opened))


def _describe(process: psutil.Process, opened: tuple[str, ...]) -> ProjectProcess:
    with process.oneshot():
        times = process.cpu_times()
        return ProjectProcess(
            pid=process.pid,
            command=" ".join(process.cmdline())[:200] or process.name(),
            started=datetime.fromtimestamp(process.create_time(), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            cpu_seconds=round(times.user + times.system, 1),
            memory_bytes=process.memory_info().rss,
            open_files=opened,
        )


def _command_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:120]
    except (psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
        return "gone"
