"""What the server's process holds while it is tried out: rights, open files, sockets, what it left on disk.

The process is found by the credentials of its Unix socket, whatever runtime started it, and read from `/proc`.
Leaves to others: what is asked of the server meanwhile (probe.py), limits and isolation (the runtimes).
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.errors import Reason

_CREDENTIALS = struct.Struct("3i")
_STANDARD_STREAMS = 3
_TELEMETRY = re.compile(r"telemetry|/\.cache/|Microsoft|\.ses$|\.db(-wal|-journal)?$", re.IGNORECASE)
"""Files that onnxruntime's reporting keeps, if it runs."""
_WRITABLE = ("tmp", "var/tmp")
_CGROUPS = Path("/sys/fs/cgroup")
_LIMIT_FILES = {
    "cpus": ("cpu.max", "cpu.cfs_quota_us"),
    "memory_bytes": ("memory.max", "memory.limit_in_bytes"),
    "pids": ("pids.max",),
}
_NO_LIMIT = 2.0**60
"""The first version of control groups says a number near 2^63 where there is no limit."""


@dataclass(frozen=True)
class ObservedProcess:
    """One look at a process."""

    is_isolated: bool
    """Has a root folder of its own; else it is a plain process whose rights are ours."""
    capabilities: int
    """Effective ones, as bits."""
    has_no_new_privileges: bool
    seccomp: int
    """2: a filter is in force."""
    environment: dict[str, str]
    written_files: tuple[str, ...]
    """Open for writing, beside the standard streams."""
    internet_sockets: tuple[str, ...]
    """Tables of /proc/PID/net that name a socket of this process."""
    mapped_files: int
    suspicious_files: tuple[str, ...]
    """Open or mapped, by the names that reporting uses."""
    limits: dict[str, float]
    """Of its control group: `cpus`, `memory_bytes`, `pids`; only those that are set."""
    left_files: tuple[str, ...]
    """In the image's own temporary folders."""

    def facts(self) -> dict[str, Any]:
        """For the probe's result."""
        return {
            "capabilities": f"{self.capabilities:x}",
            "no_new_privileges": self.has_no_new_privileges,
            "seccomp": self.seccomp,
            "files_open_for_writing": len(self.written_files),
            "internet_sockets": len(self.internet_sockets),
            "mapped_files": self.mapped_files,
            "limits": self.limits,
        }


def observe_process(server_socket: Path) -> ObservedProcess | None:
    """The process behind a Unix socket; None where this user may not look at it."""
    try:
        pid = _listener_of(server_socket)
        folder = Path(f"/proc/{pid}")
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        opened = dict(_open_files(folder))
        mapped = {line.split(maxsplit=5)[5] for line in (folder / "maps").read_text().splitlines() if "/" in line}
        is_isolated = (folder / "root").stat().st_ino != Path("/").stat().st_ino
        variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        written = {name for name, flags in opened.values() if name.startswith("/") and flags & os.O_ACCMODE}
        named = {name for name, _ in opened.values()} | mapped
        return ObservedProcess(
            is_isolated=is_isolated,
            capabilities=int(status["CapEff"], 16),
            has_no_new_privileges=status["NoNewPrivs"].strip() == "1",
            seccomp=int(status["Seccomp"]),
            environment=dict(line.partition("=")[::2] for line in variables if line),
            written_files=tuple(sorted(written)),
            internet_sockets=tuple(_internet_sockets(folder, {name for name, _ in opened.values()})),
            mapped_files=len(mapped),
            suspicious_files=tuple(sorted(name for name in named if _TELEMETRY.search(name))),
            limits=_limits(folder),
            left_files=tuple(_left_files(folder / "root")) if is_isolated else (),
        )
    except (OSError, KeyError, ValueError):
        return None


def judge_process(seen: ObservedProcess) -> tuple[Reason, ...]:
    """Every ground for FAIL. The process ran with nothing but a Unix socket, so no internet socket is due."""
    reasons = []
    if seen.is_isolated and seen.capabilities:
        reasons.append(Reason("capabilities", f"the process keeps the capabilities {seen.capabilities:x}"))
    if seen.is_isolated and not seen.has_no_new_privileges:
        reasons.append(Reason("new-privileges", "the process may gain privileges by running a program"))
    if seen.is_isolated and seen.seccomp != 2:
        reasons.append(Reason("no-seccomp", "no seccomp filter is in force"))
    if seen.environment.get("ORT_DISABLE_TELEMETRY") != "1":
        reasons.append(Reason("telemetry", "ORT_DISABLE_TELEMETRY is not 1 in the running process"))
    for code, text, names in (
        ("telemetry", "a file of a reporting library is open", seen.suspicious_files),
        ("file-open-for-writing", "a file is open for writing", seen.written_files),
        ("internet-socket", "there is a socket beside the listener", seen.internet_sockets),
        ("file-left", "the server wrote to its temporary folder", seen.left_files),
    ):
        reasons += [Reason(code, f"{text}: {name}") for name in names]
    return tuple(reasons)


def _listener_of(server_socket: Path) -> int:
    """Process that listens, in our own numbering."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(server_socket))
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(packed)[0]
    return pid


def _open_files(folder: Path) -> Iterator[tuple[int, tuple[str, int]]]:
    """Descriptor to name and flags, without the standard streams."""
    for entry in (folder / "fd").iterdir():
        number = int(entry.name)
        if number < _STANDARD_STREAMS:
            continue
        try:
            name = str(entry.readlink())
            lines = (folder / "fdinfo" / entry.name).read_text().splitlines()
        except FileNotFoundError:
            continue  # closed meanwhile
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        yield number, (name, flags)


def _internet_sockets(folder: Path, opened: set[str]) -> Iterator[str]:
    inodes = {name.removeprefix("socket:[").rstrip("]") for name in opened if name.startswith("socket:[")}
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = folder / "net" / table
        if not path.is_file():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                yield f"{table} {fields[1]} to {fields[2]}"


def _limits(folder: Path) -> dict[str, float]:
    """From either version of control groups; nothing where the process has none of its own."""
    found: dict[str, float] = {}
    for line in (folder / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in ("", "unified") if not controllers else (controllers,):
            place = _CGROUPS / controller / path.lstrip("/")
            for name, files in _LIMIT_FILES.items():
                for file in files:
                    if (value := _read_limit(place, file)) is not None and path != "/":
                        found[name] = value
    return found


def _read_limit(place: Path, file: str) -> float | None:
    """The number in a limit's file, per period where there is one; None where it is absent or without limit."""
    try:
        words = (place / file).read_text().split()
        if file == "cpu.cfs_quota_us":
            words.append((place / "cpu.cfs_period_us").read_text())
        value = float(words[0]) / (float(words[1]) if len(words) > 1 else 1.0)
    except (OSError, ValueError):
        return None
    return value if 0 < value < _NO_LIMIT else None


def _left_files(root: Path) -> Iterator[str]:
    for name in _WRITABLE:
        for path in (root / name).rglob("*"):
            yield f"/{path.relative_to(root)}"
