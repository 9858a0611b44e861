"""The first thing `mlops rollback` does, before click or even json is imported: move traffic to the warm version.

The reconciler keeps a file with everything this needs: who loses traffic, what to hold, which slot must listen, and the
proxy's commands. It wrote them after admitting and checking that version, so nothing is decided here. Only C modules
are imported: starting Python is then most of the time it takes.
Leaves to others: every less simple call of the command, and all that follows (mlops/cli/rollback.py).
"""

from __future__ import annotations

import _socket
import fcntl
import os
import time

PLAN = "way-back.plan"
HOLD = "hold.json"
LOCK = "switch.lock"
CONTROL_SOCKET = "proxy.sock"
_SEPARATOR = "\n"


def render_plan(*, leaving: str, hold: str, slot: int, commands: str) -> str:
    """The file's text: one field per line.

    Args:
        leaving: Image that loses traffic.
        hold: Content of the hold file.
        slot: Must be listened at.
        commands: For the proxy's control socket.
    """
    return _SEPARATOR.join((leaving, hold, str(slot), commands))


def move_traffic(arguments: list[str]) -> str | None:
    """Act on `rollback ENVIRONMENT [--product NAME] [--reason TEXT] [--json]`; anything else is left alone.

    Returns:
        `<image that lost traffic>,<begun>,<confirmed>` (wall clock nanoseconds), or None when nothing was moved.
    """
    begun_ns = time.time_ns()
    product = _read_arguments(arguments)
    if product is None:
        return None
    folder = _find_folder(arguments[1], product)
    if folder is None:
        return None
    try:
        leaving = _switch(folder)
    except (OSError, ValueError):
        return None  # the command itself says what is wrong
    return f"{leaving},{begun_ns},{time.time_ns()}" if leaving else None


def _read_arguments(arguments: list[str]) -> str | None:
    """The product, empty when none is named; None when this is not the simple call."""
    if len(arguments) < 2 or arguments[0] != "rollback" or not arguments[1].replace("-", "").isalnum():
        return None
    if arguments[1].startswith("-"):
        return None
    product, rest = "", arguments[2:]
    while rest:
        if rest[0] in ("--product", "--reason") and len(rest) > 1:
            product = rest[1] if rest[0] == "--product" else product
            rest = rest[2:]
        elif rest[0] == "--json":
            rest = rest[1:]
        else:
            return None
    return None if "/" in product or product.startswith(".") else product


def _find_folder(environment: str, product: str) -> str | None:
    root = os.getcwd()  # noqa: PTH109 - pathlib takes as long to import as all of this
    while not os.path.exists(f"{root}/datasets.dvc"):  # noqa: PTH110
        if root == "/":
            return None
        root = os.path.dirname(root)  # noqa: PTH120
    base = f"{root}/.mlops/serving/{environment}"
    try:
        names = [product] if product else [name for name in os.listdir(base) if os.path.isdir(f"{base}/{name}/slots")]  # noqa: PTH112, PTH208
    except OSError:
        return None
    return f"{base}/{names[0]}" if len(names) == 1 else None


def _switch(folder: str) -> str | None:
    """Hold, then switch, under the lock that every setter of weights takes."""
    lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(f"{folder}/{PLAN}", encoding="utf-8") as stream:  # noqa: PTH123
            leaving, hold, slot, commands = stream.read().split(_SEPARATOR)
        _connect(f"{folder}/slots/{slot}", "server.sock").close()
        aside = f"{folder}/.{HOLD}.{os.getpid()}"
        with open(aside, "w", encoding="utf-8") as stream:  # noqa: PTH123
            stream.write(hold)
        os.rename(aside, f"{folder}/{HOLD}")  # noqa: PTH104
        control = _connect(folder, CONTROL_SOCKET)
        control.sendall((commands + "\n").encode())
        answer = b""
        while piece := control.recv(4_096):  # to the end: the proxy drops the commands left when its reader goes
            answer += piece
        control.close()
        return None if answer.strip() else leaving
    finally:
        os.close(lock)


def _connect(folder: str, name: str) -> _socket.socket:
    """As `traffic_switch.connect_unix`: however long the path."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.settimeout(1.0)
        connection.connect(f"/proc/self/fd/{handle}/{name}")
        return connection
    finally:
        os.close(handle)
