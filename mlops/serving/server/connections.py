"""uvicorn's HTTP/1.1 protocol with bounds: on the time a request may take to arrive, and on the size of its head.

Leaves to others: HTTP itself (uvicorn, httptools), bodies and answers (application.py).
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10
_HEAD_END = b"\r\n\r\n"
SWEEP_SECONDS = 0.25
_PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `deadline` is on the loop's clock; infinite while it is the server's turn."""

    request_seconds = 10.0
    """Set once at start (`BODY_TIMEOUT_SECONDS`)."""

    def connection_made(self, transport: Any) -> None:
        """A client that says nothing is cut off like one that stops talking."""
        super().connection_made(transport)
        self.deadline = self.loop.time() + self.timeout_keep_alive
        self._head_bytes = 0
        self._head_tail = b""

    def data_received(self, data: bytes) -> None:
        """Measure the head, then parse."""
        if self._head_bytes >= 0:
            if self._head_bytes + len(data) > MAX_HEAD_BYTES and self._measure_head(data) > MAX_HEAD_BYTES:
                self._end(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
                return
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > 0:
            self._head_tail = (self._head_tail + data)[1 - len(_HEAD_END) :]

    def _measure_head(self, data: bytes) -> float:
        """Bytes of the head of which `data` is the next part; infinite when it does not end there."""
        at = (self._head_tail + data).find(_HEAD_END)
        return math.inf if at < 0 else self._head_bytes - len(self._head_tail) + at + len(_HEAD_END)

    def on_message_begin(self) -> None:
        """The clock of this request starts."""
        super().on_message_begin()
        self.deadline = self.loop.time() + self.request_seconds

    def on_headers_complete(self) -> None:
        """What follows is body, which the application bounds."""
        self._head_bytes = -1
        self._head_tail = b""
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is here."""
        self.deadline = math.inf
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in JSON like every refusal."""
        self._end(400, msg)

    def shutdown(self) -> None:
        """End it a moment later: a request that lies in its socket unread would be lost, though the client sent it."""
        self.loop.call_later(SWEEP_SECONDS, super().shutdown)

    def expire(self, now: float) -> None:
        """Cut off a request that did not arrive in time."""
        if now <= self.deadline or self.transport.is_closing():
            return
        if self.pipeline:  # reading is paused by us, not by the client
            self.deadline = now + self.request_seconds
            return
        self._end(408, "the request did not arrive in time")

    def _end(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps({"error": message}).encode()
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, _PHRASES[status], len(body), body)
            )
        self.transport.close()


async def cut_off_late_requests(connections: Iterable[Any]) -> None:
    """Look at every connection a few times a second, for ever; cheaper than a timer per request."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, BoundedProtocol):
                connection.expire(now)
