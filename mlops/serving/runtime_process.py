"""Runs an image's own interpreter and server as a plain process of this user: no sandbox, no root, no tool needed.

The image is unpacked once per digest and its Python is started through its own dynamic loader. For tries and tests;
isolation (read-only root, no capabilities, limits) comes only from the container runtimes.
Leaves to others: podman and bubblewrap (mlops/deploy/runtime_*.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import psutil

from mlops.errors import EnvironmentFault, ServingError
from mlops.files import remove_tree, write_atomically
from mlops.provenance.digest import canonical_json, hex_of
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.runtime import (
    SOCKET_NAME,
    Instance,
    RunRequest,
    remove_ended_logs,
    require_idle,
    unpack_image,
)

_LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


class ProcessRuntime:
    """Instances recorded as files in one folder, so that another process finds them.

    Args:
        folder: Unpacked images, logs and records; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def name(self) -> str:
        """`process`."""
        return "process"

    def start(self, request: RunRequest) -> Instance:
        """See `Runtime.start`."""
        record = self._folder / "instances" / f"{request.name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._folder / ".lock", timeout=60):
            known = _read_instance(record)
            if known is not None and self.is_running(known):
                raise ServingError(f"{request.name} is running already", hint="stop it first, or use another name")
            root = self._unpacked(request)
            command, environment = _command(root, request)
            with (self._folder / "instances" / f"{request.name}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._children[process.pid] = process
            instance = Instance(
                name=request.name,
                runtime=self.name,
                identity=f"{process.pid}:{psutil.Process(process.pid).create_time()}",
                digest=request.digest,
                socket=request.socket_folder / SOCKET_NAME,
                tcp_port=request.tcp_port,
            )
            write_atomically(record, canonical_json({**vars(instance), "socket": str(instance.socket)}))
        return instance

    def is_running(self, instance: Instance) -> bool:
        """See `Runtime.is_running`."""
        return _find_process(instance) is not None

    def stop(self, instance: Instance, *, timeout_seconds: float) -> int | None:
        """See `Runtime.stop`."""
        process = _find_process(instance)
        if process is not None:
            _end(process, timeout_seconds=timeout_seconds)
        child = self._children.pop(int(instance.identity.partition(":")[0]), None)
        code = None if child is None else child.wait(timeout=timeout_seconds)
        (self._folder / "instances" / f"{instance.name}.json").unlink(missing_ok=True)
        return code

    def logs(self, instance: Instance) -> str:
        """See `Runtime.logs`."""
        path = self._folder / "instances" / f"{instance.name}.log"
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""

    def list_instances(self) -> tuple[Instance, ...]:
        """See `Runtime.list_instances`."""
        found = [_read_instance(path) for path in sorted((self._folder / "instances").glob("*.json"))]
        return tuple(instance for instance in found if instance is not None and self.is_running(instance))

    def forget_image(self, digest: str, *, layout: Path) -> bool:
        """See `Runtime.forget_image`."""
        running = self.list_instances()
        require_idle(running, digest)
        remove_ended_logs(self._folder / "instances", running)
        return remove_tree(self._folder / "roots" / hex_of(digest))

    def _unpacked(self, request: RunRequest) -> Path:
        root = self._folder / "roots" / hex_of(request.digest)
        if not root.is_dir():
            aside = root.with_name(f".{root.name}.{os.getpid()}")
            shutil.rmtree(aside, ignore_errors=True)
            unpack_image(request.layout, request.digest, aside)
            aside.replace(root)
        return root


def _command(root: Path, request: RunRequest) -> tuple[list[str], Mapping[str, str]]:
    """The image's entrypoint and environment, with its absolute paths moved to where it was unpacked."""
    layout = ImageLayout(request.layout)
    config = json.loads(layout.read_blob(layout.read_manifest(request.digest)["config"]["digest"]))["config"]
    if not (root / _LOADER).is_file():
        raise EnvironmentFault(
            f"image {request.digest} has no Debian amd64 base, which the plain process runtime needs",
            hint="run it with podman or bubblewrap",
        )
    environment = dict(line.split("=", 1) for line in config["Env"])
    environment |= {
        "MODELS": f"{root}{environment['MODELS']}",
        "PYTHONPATH": ":".join(f"{root}{part}" for part in environment["PYTHONPATH"].split(":")),
        "PYTHONHOME": f"{root}/usr",
        "SOCKET": str(request.socket_folder / SOCKET_NAME),
        "PORT": "" if request.tcp_port is None else str(request.tcp_port),
        **request.environment,
    }
    program, *arguments = config["Entrypoint"]
    command = [f"{root}/{_LOADER}", "--library-path", f"{root}/{_LIBRARIES}", f"{root}{program}", *arguments]
    return command, environment


def _read_instance(path: Path) -> Instance | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return Instance(**{**content, "socket": Path(content["socket"])})


def _find_process(instance: Instance) -> psutil.Process | None:
    """The instance's process, if the id was not given to another one since."""
    number, _, started = instance.identity.partition(":")
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(number))
        if str(process.create_time()) == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _end(process: psutil.Process, *, timeout_seconds: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_seconds
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                process.kill()
                return
            time.sleep(0.01)
