"""Connecting to Ray: the cluster that `RAY_ADDRESS` names, else a local one that is started on first need and reused.

The local one is found by `.mlops/ray.json`, listens on 127.0.0.1 only, keeps its token inside `.mlops/` and its
sockets in a short folder below /tmp (their paths must stay under 107 bytes).
Leaves to others: worker groups (mlops/training/ray_group), keeping it alive (mlops/training/ray_keeper).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from mlops.errors import EnvironmentFault
from mlops.files import write_atomically
from mlops.places import Places, require_no_namesake

START_SECONDS = 180.0
REACH_SECONDS = 10.0
SHORT_PATH = 20
"""Sockets of Ray need a temporary folder with a path shorter than this."""


@dataclass(frozen=True)
class LocalRay:
    """A local cluster that runs."""

    address: str
    pid: int
    """Of its keeper."""
    cpus: int
    temporary: Path


@contextmanager
def connected(
    places: Places,
    *,
    cpus: int | None = None,
    cluster: str | None = None,
    address: str = "",
    runtime_env: Mapping[str, Any] | None = None,
) -> Iterator[float]:
    """Ray is initialised inside the block; gives the CPUs of the cluster.

    Args:
        places: The project, for the local cluster's record.
        cpus: Logical CPUs of a local cluster that has to be started; default is what this process may use.
        cluster: `local`, `existing`, or None for what `RAY_ADDRESS` says.
        address: Of a cluster that was started for the caller.
        runtime_env: What workers of an existing cluster run in.

    Raises:
        EnvironmentFault: No cluster can be reached or started.
        ProjectError: A package of the project has the name of this one.
    """
    require_no_namesake(places.root)
    for folder in (places.keys_folder, places.cache, places.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)  # confined workers cannot make folders beside the keys
    address = address or find_address(cluster)
    with contextlib.ExitStack() as stack:
        is_local = not address
        if is_local:
            _set_environment(places)
            stack.enter_context(_using(places))
            address = _find_or_start(places, cpus=cpus).address
        else:
            _require_listener(address)
        import ray  # heavy, and must see the environment set above
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # Cython

        if is_local:
            AuthenticationTokenLoader.instance().reset_cache()  # this process may have used another project's token
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            options = {"runtime_env": dict(runtime_env)} if runtime_env else {}
            ray.init(address=address, namespace="mlops", log_to_driver=False, configure_logging=False, **options)
        except Exception as error:  # ray raises many types here
            raise EnvironmentFault(
                f"Ray at {address} cannot be reached: {error}",
                hint="unset RAY_ADDRESS to use a local Ray, or check the cluster; `mlops stop` ends a local one",
            ) from error
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack and ends the command where it stands
        # What the raylet says of a dead worker goes to standard output whatever `log_to_driver` says, and would stand
        # in the middle of JSON. The sweep tells of the loss itself. Private: a release of Ray may move it.
        ray._private.worker._worker_logs_enabled = False
        stack.callback(ray.shutdown)
        yield float(ray.cluster_resources().get("CPU", 0.0))


def find_address(cluster: str | None) -> str:
    """The address of an existing cluster, or "" for the local one.

    Raises:
        EnvironmentFault: An existing one is wanted and none is named.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if cluster == "existing" and not named:
        raise EnvironmentFault(
            "`cluster: existing` needs the address of a cluster", hint="set RAY_ADDRESS=HOST:6379 or ray://HOST:10001"
        )
    return "" if cluster == "local" else named


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes, and fills the screen, when nobody listens at `host:port`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # `auto`, or a form that Ray knows better
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentFault(
            f"Ray at {address} cannot be reached: {getattr(error, 'strerror', None) or error}",
            hint="unset RAY_ADDRESS to use a local Ray, or check the cluster",
        ) from error


def find_local(places: Places) -> LocalRay | None:
    """The local cluster on record, when its keeper lives."""
    try:
        content = json.loads(_record(places).read_text(encoding="utf-8"))
        found = LocalRay(content["address"], content["pid"], content["cpus"], Path(content["temporary"]))
    except (OSError, ValueError, KeyError):
        return None
    return found if _is_keeper(found.pid) else None


def is_whole(keeper_pid: int) -> bool:
    """Whether a cluster's own processes all live; Ray does not start them again."""
    names = set()
    for process in _descendants(keeper_pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                names.add(process.name())
    return {"raylet", "gcs_server"} <= names


def stop_local(places: Places, *, timeout_seconds: float = 20.0) -> bool:
    """End the local cluster and remove its temporary folder; False when none was running."""
    found = find_local(places)
    _record(places).unlink(missing_ok=True)
    if found is None:
        return False
    children = _descendants(found.pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=timeout_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(found.temporary, ignore_errors=True)
    return True


def _find_or_start(places: Places, *, cpus: int | None) -> LocalRay:
    with filelock.FileLock(places.state / "ray.lock", timeout=START_SECONDS):
        found = find_local(places)
        if found is not None and is_whole(found.pid):
            return found
        stop_local(places)  # its keeper is about to see that it lost a part
        return _start(places, cpus=cpus or len(os.sched_getaffinity(0)))


def _start(places: Places, *, cpus: int) -> LocalRay:
    """Start the keeper and wait for its record; on a very busy machine Ray gives up after 30 s and is started again."""
    digest = hashlib.sha256(str(places.root).encode()).hexdigest()[:8]
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < SHORT_PATH else "/tmp"  # noqa: S108
    temporary = Path(short) / f"mlops-ray-{digest}"
    log = places.state / "ray-keeper.log"
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        shutil.rmtree(temporary, ignore_errors=True)
        _record(places).unlink(missing_ok=True)
        pid = _spawn_keeper(places, log=log, temporary=temporary, cpus=cpus)
        while not _has_ended(pid):
            found = find_local(places)
            if found is not None:
                return found
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGTERM)
                break
            time.sleep(0.05)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise EnvironmentFault(
        "a local Ray did not start", items=tuple(last), hint=f"read {log}, or name a cluster in RAY_ADDRESS"
    )


def _spawn_keeper(places: Places, *, log: Path, temporary: Path, cpus: int) -> int:
    """Start the keeper in a session of its own: it outlives this command."""
    command = [sys.executable, "-m", "mlops.training.ray_keeper", "--record", str(_record(places))]
    command += ["--users", str(_users(places)), "--temporary", str(temporary), "--cpus", str(cpus)]
    to_log = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), to_log, (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=files, setsid=True)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


@contextmanager
def _using(places: Places) -> Iterator[None]:
    """Hold the users file with a shared lock: the keeper sees that the cluster is needed."""
    places.state.mkdir(parents=True, exist_ok=True)
    with _users(places).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def _set_environment(places: Places) -> None:
    """Ray reads these when it is imported; workers inherit those of the keeper."""
    token = places.state / "ray-token"
    if not token.is_file():
        write_atomically(token, secrets.token_hex(32), mode=0o600)
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # despite its name: use the loopback address, and bind to it only
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_worker_niceness="0",  # Ray's 15 leaves paid workers a thirtieth of a core that something else keeps busy
        RAY_DISABLE_IMPORT_WARNING="1",
        ORT_DISABLE_TELEMETRY="1",
    )


def _record(places: Places) -> Path:
    return places.state / "ray.json"


def _users(places: Places) -> Path:
    return places.state / "ray.users"


def _is_keeper(pid: int) -> bool:
    try:
        return "mlops.training.ray_keeper" in psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
