"""A small HTTP client over a Unix socket, for the probe and for `mlops image run`.

Leaves to others: what is asked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mlops.errors import ServingError


@dataclass(frozen=True)
class HttpAnswer:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """The body as JSON; raises ValueError when it is none."""
        return json.loads(self.body)


class SocketClient:
    """One connection, kept open between questions."""

    def __init__(self, path: Path, *, timeout_seconds: float) -> None:
        self._connection = _UnixConnection(path, timeout_seconds)

    def __enter__(self) -> SocketClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, *, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        """Ask and read the whole answer.

        Raises:
            ServingError: Nobody listens, or the connection broke.
        """
        try:
            self._connection.request(method, path, body=body or None, headers=dict(headers))
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ServingError(f"no answer to {method} {path}: {error or type(error).__name__}") from error
        found = {name.lower(): value for name, value in response.getheaders()}
        return HttpAnswer(status=response.status, headers=found, body=content)

    def ask_json(self, path: str, body: Any) -> HttpAnswer:
        """POST a JSON value.

        Raises:
            ServingError: as `ask`.
        """
        headers = {"content-type": "application/json"}
        return self.ask("POST", path, body=json.dumps(body).encode(), headers=headers)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def talk(path: Path, pieces: Sequence[bytes], *, timeout_seconds: float) -> bytes:
    """Send raw bytes; all that comes back until the server closes. Nothing when it neither answers nor closes."""
    received = b""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_seconds)
        connection.connect(str(path))
        for piece in pieces:
            connection.sendall(piece)
        while part := connection.recv(65_536):
            received += part
    return received
