"""What runs an image: one small interface that podman, bubblewrap and a plain local process all fulfil.

Every implementation starts the image's own entrypoint from its own root file system: read-only root, uid 65532, no
capabilities, no new privileges, only `socket_folder` writable (seen inside as `/run/mlops`) and a small `/tmp`.
Leaves to others: the implementations for people (mlops/deploy/runtime_*.py) and what should run (mlops/deploy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from mlops.errors import ServingError
from mlops.serving.oci_unpack import unpack_image

__all__ = [
    "IMAGE_GROUP_ID",
    "IMAGE_USER_ID",
    "SOCKET_NAME",
    "Instance",
    "RunRequest",
    "Runtime",
    "remove_ended_logs",
    "require_idle",
    "unpack_image",
]

IMAGE_USER_ID = 65532
"""Numeric user inside the image; `socket_folder` must be writable for it (as mapped by the runtime)."""
IMAGE_GROUP_ID = 65532
SOCKET_NAME = "server.sock"
"""File name of the server's Unix socket inside `socket_folder`."""


@dataclass(frozen=True)
class RunRequest:
    """One image to start."""

    name: str
    """Unique on this machine: letters, digits, `-`, `_`, `.`."""
    layout: Path
    """OCI image layout that holds the image."""
    digest: str
    """`sha256:…` of the image's manifest."""
    socket_folder: Path
    """Existing folder on the host, mounted writable at `/run/mlops`; the server makes `server.sock` in it."""
    tcp_port: int | None = None
    """Port on 127.0.0.1 to answer on too; `None` means no network at all, only the socket."""
    memory_bytes: int | None = None
    """Limit where the runtime can set one."""
    pids: int | None = 64
    """Limit of processes and threads."""
    cpus: float | None = None
    """Limit in cores."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the image's own environment (`LOG_LEVEL`, `MLOPS_*`); never secrets."""


@dataclass(frozen=True)
class Instance:
    """A started image. Enough to find it again from another process."""

    name: str
    runtime: str
    """Name of the runtime that started it."""
    identity: str
    """What the runtime knows it by: container id, process id with its start time."""
    digest: str
    """`sha256:…` of the image's manifest."""
    socket: Path
    """The server's Unix socket as seen from the host."""
    tcp_port: int | None


def require_idle(running: Iterable[Instance], digest: str) -> None:
    """Refuse to forget what runs.

    Raises:
        ServingError: An instance of that image is running.
    """
    names = tuple(instance.name for instance in running if instance.digest == digest)
    if names:
        raise ServingError(f"{digest[:19]} is running", items=names, hint="stop it first")


def remove_ended_logs(folder: Path, running: Iterable[Instance]) -> None:
    """Remove what instances wrote that run no more."""
    names = {instance.name for instance in running}
    for path in folder.glob("*.log"):
        if path.stem not in names:
            path.unlink(missing_ok=True)


@runtime_checkable
class Runtime(Protocol):
    """Starts, watches and stops images. All methods may be called again after a crash of the caller."""

    @property
    def name(self) -> str:
        """`podman`, `bubblewrap`, `process`."""
        ...

    def start(self, request: RunRequest) -> Instance:
        """Start the image; returns when the process exists, not when it answers.

        Raises:
            ServingError: The image cannot be started, or `name` is taken by a running instance.
            EnvironmentFault: The runtime's tool is missing or forbidden here.
        """
        ...

    def is_running(self, instance: Instance) -> bool:
        """Whether its process is alive."""
        ...

    def stop(self, instance: Instance, *, timeout_seconds: float) -> int | None:
        """SIGTERM, wait, then SIGKILL. Stopping what is gone is no error.

        Returns:
            The exit code where it is known, 137 (or -9) when it had to be killed, else `None`.
        """
        ...

    def logs(self, instance: Instance) -> str:
        """What it wrote to stdout and stderr so far, newest last; also after it ended."""
        ...

    def list_instances(self) -> tuple[Instance, ...]:
        """Everything this runtime started here that is still running."""
        ...

    def forget_image(self, digest: str, *, layout: Path) -> bool:
        """Remove the runtime's own copy of an image that nothing runs, and the logs of instances that ended.

        Returns:
            Whether there was a copy.

        Raises:
            ServingError: It is running, or cannot be removed.
        """
        ...
