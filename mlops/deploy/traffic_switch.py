"""Moving traffic between instances that already run, in milliseconds: the one short path shared by all who do it.

Only the standard library is imported here, so that `mlops rollback` can act before anything else is loaded. Whoever
sets weights holds the switch lock and honours a hold: after a rollback has moved traffic, a reconciler that still works
on the former desired state cannot move it back.
Leaves to others: which weights are right (reconciler.py, rollback.py) and the proxy itself (proxy_haproxy.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlops.deploy.first_move import CONTROL_SOCKET, HOLD, LOCK, PLAN, render_plan

BACKEND = "served"
_WAY_BACK = "way-back.json"
_TIMEOUT_SECONDS = 2.0
_FULL_WEIGHT = 100


def slot_name(slot: int) -> str:
    """Name of a slot in the proxy."""
    return f"slot{slot}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One setter of weights at a time; the lock vanishes with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def connect_unix(folder: Path, name: str, *, timeout_seconds: float) -> socket.socket:
    """Connect to a socket file however long its path is (the kernel takes 107 bytes; this path is always short).

    Raises:
        OSError: Nobody listens there.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(f"/proc/self/fd/{handle}/{name}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(handle)


def command_proxy(folder: Path, *commands: str) -> str:
    """Send commands to the proxy's control socket in one write; returns what it says.

    Raises:
        OSError: The proxy is not there.
    """
    with connect_unix(folder, CONTROL_SOCKET, timeout_seconds=_TIMEOUT_SECONDS) as connection:
        connection.sendall((";".join(commands) + "\n").encode())
        pieces: list[bytes] = []
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces).decode()


def set_weights(folder: Path, weights: Mapping[int, int]) -> None:
    """Give slots their share; those that gain come first, so that there is always somebody to answer.

    Args:
        folder: Of the served product.
        weights: Slot to percent; 0 takes no new requests and finishes those under way.

    Raises:
        OSError: The proxy is not there.
        ValueError: The proxy refused.
    """
    answer = command_proxy(folder, *render_commands(weights)).strip()
    if answer:
        raise ValueError(answer)


def render_commands(weights: Mapping[int, int]) -> list[str]:
    """Commands to the proxy that set these shares, gaining slots first."""
    commands: list[str] = []
    for slot, weight in sorted(weights.items(), key=lambda entry: -entry[1]):
        server = f"{BACKEND}/{slot_name(slot)}"
        if weight:
            commands += [f"set server {server} state ready", f"set server {server} health up"]
        commands.append(f"set server {server} weight {weight}")
    return commands


def read_hold(folder: Path) -> str | None:
    """Image that a rollback moved traffic to and that is not yet the desired state."""
    hold = _read_json(folder / HOLD)
    return str(hold["image"]) if hold else None


def hold_age_seconds(folder: Path) -> float | None:
    """How long ago a rollback moved traffic that is not yet the desired state; None when there is none."""
    try:
        return max(0.0, time.time() - (folder / HOLD).stat().st_mtime)
    except OSError:
        return None


def release_hold(folder: Path) -> None:
    """The desired state has caught up."""
    (folder / HOLD).unlink(missing_ok=True)


def write_way_back(folder: Path, way: Mapping[str, Any] | None) -> None:
    """Note where a rollback would go: written by the reconciler after it has admitted and checked that instance.

    Args:
        folder: Of the served product.
        way: `image` and `number` to go to, their `slot`, `leave` (slots that lose traffic), `from_image` and
            `from_number`; None when there is no warm version.
    """
    if way is None:
        (folder / PLAN).unlink(missing_ok=True)
        (folder / _WAY_BACK).unlink(missing_ok=True)
        return
    plan = render_plan(
        leaving=way["from_image"],
        hold=json.dumps({"image": way["image"]}),
        slot=way["slot"],
        commands=";".join(render_commands(_weights_back(way))),
    )
    _write_text(folder / PLAN, plan)
    _write_text(folder / _WAY_BACK, json.dumps(way, sort_keys=True))


def read_way_back(folder: Path) -> dict[str, Any] | None:
    """What `write_way_back` noted."""
    return _read_json(folder / _WAY_BACK)


def switch_back(folder: Path) -> dict[str, Any] | None:
    """Move all traffic to the warm last known good version and hold it there; None when there is none to move to.

    Returns:
        The way taken, with `switched_ns` (wall clock) when the proxy had confirmed.

    Raises:
        OSError: The proxy is not there.
    """
    with locked(folder):
        way = read_way_back(folder)
        if way is None or not is_listening(folder, way["slot"]):
            return None
        _write_text(folder / HOLD, json.dumps({"image": way["image"]}))
        set_weights(folder, _weights_back(way))
        return {**way, "switched_ns": time.time_ns()}


def slot_folder(folder: Path, slot: int) -> Path:
    """Where an instance's socket lies."""
    return folder / "slots" / str(slot)


def is_listening(folder: Path, slot: int) -> bool:
    """Whether somebody accepts connections in a slot."""
    try:
        connect_unix(slot_folder(folder, slot), "server.sock", timeout_seconds=0.5).close()
    except OSError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content


def _weights_back(way: Mapping[str, Any]) -> dict[int, int]:
    return {way["slot"]: _FULL_WEIGHT, **dict.fromkeys(way["leave"], 0)}


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
