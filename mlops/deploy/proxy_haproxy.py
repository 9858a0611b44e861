"""The proxy in front of a served product: the one door to HAProxy.

Its configuration names a fixed number of slots, each a Unix socket in a folder of its own, so that it never has to be
reloaded: versions come and go by weights at the control socket. Requests are buffered and tried again on another
instance when theirs dies. It listens on 127.0.0.1 only.
Leaves to others: weights (traffic_switch.py), and what runs in the slots (reconciler.py).
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlops.deploy import traffic_switch
from mlops.deploy.environment import SLOTS
from mlops.deploy.first_move import CONTROL_SOCKET
from mlops.errors import EnvironmentFault, ServingError
from mlops.files import write_atomically

INSTALL = "run `apt-get install haproxy`"
_CONFIG = "proxy.cfg"
_PID = "proxy.pid"
_START_SECONDS = 5.0

_TEMPLATE = """\
# Written by `mlops deploy reconcile`.
global
    maxconn {maxconn}
    noreuseport
    tune.bufsize 65536
    stats socket unix@{control} mode 600 level admin expose-fd listeners
    stats timeout 1h
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 30s
    timeout http-request 30s
    timeout queue 5s
    option http-buffer-request
    option redispatch 1
    retries 3
    retry-on all-retryable-errors
frontend entry
    bind 127.0.0.1:{port}
    default_backend {backend}
backend {backend}
    balance roundrobin
    option httpchk
    http-check send meth GET uri /v2/health/ready
    http-check expect status 200
    default-server check inter 500ms fall 3 rise 1
{servers}
"""


@dataclass(frozen=True)
class SlotTraffic:
    """What the proxy knows of a slot."""

    weight: int
    requests_under_way: int
    requests_total: int
    is_up: bool
    is_attached: bool
    """It was told that somebody is there."""
    errors: int
    """Responses the clients did not get from it, retries that succeeded elsewhere not counted."""


@dataclass(frozen=True)
class Proxy:
    """The proxy of one product in one environment."""

    folder: Path
    """Holds configuration, process id, control socket and slots."""
    port: int
    label: str
    """`income in production`, for messages."""

    def ensure_running(self, weights: Mapping[int, int]) -> bool:
        """Start it unless it runs as it should; returns whether it was started now.

        Args:
            weights: Slot to percent, should it have to be started.

        Raises:
            EnvironmentFault: HAProxy is not installed, or the port is taken.
        """
        wanted = render_config(self.port, {})
        running = self.find_pid()
        marker = self.folder / "proxy.base"
        if running is not None and marker.exists() and marker.read_text() == wanted:
            return False
        for slot in range(SLOTS):
            traffic_switch.slot_folder(self.folder, slot).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        write_atomically(self.folder / _CONFIG, render_config(self.port, weights))
        self._launch(running)
        write_atomically(marker, wanted)
        return True

    def find_pid(self) -> int | None:
        """Process id of the running proxy."""
        try:
            pid = int((self.folder / _PID).read_text().split()[0])
            is_ours = Path(f"/proc/{pid}/cwd").samefile(self.folder)
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError, IndexError):
            return None
        return pid if is_ours and name == "haproxy" else None

    def stop(self) -> None:
        """End it at once."""
        pid = self.find_pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _START_SECONDS
        while self.find_pid() is not None and time.monotonic() < deadline:
            time.sleep(0.02)

    def load_traffic(self) -> dict[int, SlotTraffic]:
        """Every slot as the proxy sees it.

        Raises:
            ServingError: The proxy does not answer.
        """
        try:
            text = traffic_switch.command_proxy(self.folder, f"show stat {traffic_switch.BACKEND} 4 -1")
        except OSError as error:
            raise ServingError(f"the proxy of {self.label} does not answer: {error}") from error
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return {
            int(row["svname"].removeprefix("slot")): SlotTraffic(
                weight=int(row["weight"] or 0),
                requests_under_way=int(row["scur"] or 0),
                requests_total=int(row["stot"] or 0),
                is_up=row["status"].startswith(("UP", "no check", "DRAIN")),
                is_attached=not row["status"].startswith("MAINT"),
                errors=int(row["econ"] or 0) + int(row["eresp"] or 0),
            )
            for row in rows
            if row["svname"].startswith("slot")
        }

    def count_healthy(self) -> int | None:
        """Slots that answer and have traffic; None when it does not say."""
        try:
            return sum(slot.is_up and slot.weight > 0 and slot.is_attached for slot in self.load_traffic().values())
        except ServingError:
            return None

    def wait_drained(self, slot: int, *, timeout_seconds: float) -> bool:
        """Wait until a slot has no request under way; False when time ran out."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.load_traffic()[slot].requests_under_way == 0:
                return True
            time.sleep(0.02)
        return False

    def disable_slot(self, slot: int) -> None:
        """Nobody is there (any more): no checks, no requests."""
        traffic_switch.command_proxy(
            self.folder, f"set server {traffic_switch.BACKEND}/{traffic_switch.slot_name(slot)} state maint"
        )

    def _launch(self, running: int | None) -> None:
        command = ["haproxy", "-D", "-f", _CONFIG, "-p", _PID]
        if running is not None:
            command += ["-x", CONTROL_SOCKET, "-sf", str(running)]
        try:
            found = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=30, env=_environment()
            )
        except FileNotFoundError as error:
            raise EnvironmentFault("haproxy is not installed", hint=INSTALL) from error
        if found.returncode != 0:
            raise self._translate(found.stderr)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            try:
                traffic_switch.command_proxy(self.folder, "show info")
            except OSError:
                time.sleep(0.02)
                continue
            if self.find_pid() is not None:
                return
            time.sleep(0.02)
        raise ServingError(f"the proxy of {self.label} started but does not answer: {found.stderr.strip()}")

    def _translate(self, text: str) -> EnvironmentFault:
        if "cannot bind" in text:
            return EnvironmentFault(
                f"port {self.port} of {self.label} is in use by another program",
                hint=f"find it with `ss -ltnp sport = :{self.port}`, or change traffic.ports of the environment",
            )
        return EnvironmentFault(f"haproxy could not start for {self.label}: {text.strip()[-500:]}")


STOPPED, BROKEN = "stopped", "no instance answers"
"""Why nothing answers: `mlops deploy stop` or a restart of the machine; or the proxy runs and nothing behind it."""


def find_outage(folder: Path) -> str:
    """Why nothing answers in a folder where this machine served; empty when something does, or another one serves."""
    if not folder.is_dir():
        return ""
    proxy = Proxy(folder, 0, folder.name)
    if proxy.find_pid() is None:
        return STOPPED
    return BROKEN if proxy.count_healthy() == 0 else ""


def render_config(port: int, weights: Mapping[int, int]) -> str:
    """The proxy's configuration; slots without a weight are disabled."""
    lines = []
    for slot in range(SLOTS):
        state = f"weight {weights[slot]}" if slot in weights else "weight 0 disabled"
        lines.append(f"    server {traffic_switch.slot_name(slot)} unix@slots/{slot}/server.sock {state}")
    return _TEMPLATE.format(
        port=port,
        backend=traffic_switch.BACKEND,
        control=CONTROL_SOCKET,
        servers="\n".join(lines),
        maxconn=1_000,
    )


def _environment() -> dict[str, str]:
    return {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}
