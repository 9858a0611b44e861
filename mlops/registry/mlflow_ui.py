"""The MLflow UI as a child process: bound to 127.0.0.1, one worker, no job runners, its files inside `.mlops/`.

A store on a tracking server has a UI of its own; then only its address is said.
Leaves to others: what the UI shows (mlflow_runs.py, mlflow_models.py), opening a browser (mlops/cli).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlops.errors import EnvironmentFault
from mlops.places import Places
from mlops.registry.mlflow_door import artifact_root, is_local, open_client, prepare_environment, tracking_uri

START_SECONDS = 60.0
HOST = "127.0.0.1"


@dataclass
class RunningUi:
    """A UI that answers; `process` is None when it belongs to a tracking server."""

    url: str
    port: int
    process: subprocess.Popen[bytes] | None

    def wait(self) -> int:
        """Until it ends; its exit code."""
        return self.process.wait() if self.process else 0

    def stop(self) -> None:
        """End it with its workers."""
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def start_ui(places: Places, *, port: int) -> RunningUi:
    """Start the UI and wait until it answers.

    Args:
        places: The project.
        port: On 127.0.0.1; 0 takes a free one.

    Raises:
        EnvironmentFault: The port is taken, or the UI does not start (its last lines are said).
        ProvenanceError: The store cannot be opened.
    """
    uri = tracking_uri(places)
    if not is_local(uri):
        return RunningUi(url=uri, port=0, process=None)
    used_port = _require_port(port)
    root = artifact_root(places)
    open_client(uri, artifacts=root)  # makes an empty store, so that a new project shows an empty UI
    log = places.mlflow_folder / "ui.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            _command(uri, root=root, port=used_port),
            cwd=places.mlflow_folder,
            env=_environment(places),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    running = RunningUi(url=f"http://{HOST}:{used_port}", port=used_port, process=process)
    try:
        _wait_until_ready(running, log)
    except BaseException:
        running.stop()
        raise
    return running


def _command(uri: str, *, root: Path | None, port: int) -> list[str]:
    artifacts = root.as_uri() if root else ""
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", uri, "--default-artifact-root", artifacts, "--no-serve-artifacts",
        "--allowed-hosts", f"{HOST}:{port},localhost:{port}",
    ]  # fmt: skip


def _environment(places: Places) -> dict[str, str]:
    prepare_environment()
    inside = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "XDG_CONFIG_HOME": str(places.cache / "config")}
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | inside


def _require_port(port: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise _busy_port(port, reason=getattr(error, "strerror", None) or str(error)) from error
        return int(probe.getsockname()[1])


def _busy_port(port: int, *, reason: str) -> EnvironmentFault:
    other = port + 1 if port < 65_535 else 5_000
    return EnvironmentFault(
        f"port {port} on {HOST} cannot be used: {reason}",
        hint=f"is the UI already open there? else take another: `mlops ui --port {other}`",
    )


def _is_listening(pid: int, *, port: int) -> bool:
    """Whether it is this UI that answers, and not another program that took the port meanwhile."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        listening = [found.laddr.port for one in family for found in one.net_connections(kind="tcp") if found.laddr]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return port in listening


def _wait_until_ready(running: RunningUi, log: Path) -> None:
    assert running.process is not None
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit:
        if running.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{running.url}/health", timeout=2):  # noqa: S310 - our own http address
                if _is_listening(running.process.pid, port=running.port):
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if any("address already in use" in line for line in lines):
        raise _busy_port(running.port, reason="Address already in use")
    last = lines[-5:]
    raise EnvironmentFault("the MLflow UI did not start", items=tuple(last), hint=f"read {log}")
