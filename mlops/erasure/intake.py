"""`mlops erasure serve`: signed requests over HTTP on loopback, written in groups so that many come in a second.

`POST /v1/requests` with a ticket as the body. The answer is the same for a known and an unknown person; nothing of a
body is logged. Leaves to others: signatures (tickets.py), records (requests.py), TLS and the outside (a reverse proxy).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mlops.clock import render_time
from mlops.datasets.recipe import list_recipes, load_recipe
from mlops.datasets.subjects import hash_subject, load_subject_key
from mlops.deploy.erasure_rules import ErasureSpec, load_rules
from mlops.erasure.requests import Accepted, Submission, submit_requests
from mlops.erasure.tickets import Ticket, read_ticket
from mlops.errors import MlopsError, Refusal
from mlops.project.opening import Project

PATH = "/v1/requests"
MOST_BYTES = 16_384
_GROUP = 512
_CODES = {"malformed": 400, "not-accepted": 401, "too-old": 401, "replayed": 409}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Bucket:
    """How much a tenant may still ask now: `per_minute` at once, refilled evenly."""

    per_minute: int
    left: float
    at_us: int

    def take(self, now_us: int) -> float:
        """0 when one request may pass, else seconds until the next may."""
        self.left = min(self.per_minute, self.left + max(0, now_us - self.at_us) / 60e6 * self.per_minute)
        self.at_us = max(now_us, self.at_us)
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) * 60 / self.per_minute


@dataclass
class Intake:
    """An ASGI application."""

    project: Project
    rules: ErasureSpec
    keys: dict[str, bytes]
    """Dataset to its subject key."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    waiting: asyncio.Queue[tuple[str, Submission, asyncio.Future[Accepted | Refusal]]] = field(
        default_factory=asyncio.Queue
    )
    writer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        code, answer, headers = await self._answer(scope, receive)
        content = json.dumps(answer, sort_keys=True).encode()
        plain = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": code, "headers": [*plain, *headers]})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        if (scope["method"], scope["path"]) != ("POST", PATH):
            return 404, {"error": f"POST {PATH}"}, []
        body = await _read_body(receive)
        if body is None:
            return 413, {"error": f"at most {MOST_BYTES} bytes"}, []
        now_us = self.project.clock.now_us()
        ticket = read_ticket(body, self.rules, now_us=now_us)
        if isinstance(ticket, Refusal):
            return _CODES[ticket.reasons[0].code], {"error": ticket.reasons[0].text}, []
        wait_seconds = self._find_bucket(ticket, now_us).take(now_us)
        if wait_seconds > 0:
            after = str(math.ceil(wait_seconds)).encode()
            return 429, {"error": "too many requests; none is lost, send it again later"}, [(b"retry-after", after)]
        if ticket.dataset not in self.keys:
            return 401, {"error": "the request is not signed by a key that may ask for this dataset"}, []
        answer = await self._record(ticket)
        if isinstance(answer, Refusal):
            return _CODES[answer.reasons[0].code], {"error": answer.reasons[0].text}, []
        return 202, {"receipt": answer.receipt_id, "deadline": render_time(answer.deadline_us)}, []

    async def _record(self, ticket: Ticket) -> Accepted | Refusal:
        subject = hash_subject(ticket.subject_id, key=self.keys[ticket.dataset])
        entry = Submission(subject, ticket.channel, ticket.nonce, is_identity_proven=ticket.rules.vouches_for_identity)
        answer: asyncio.Future[Accepted | Refusal] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((ticket.dataset, entry, answer))
        if self.writer is None or self.writer.done():
            self.writer = asyncio.create_task(self._write_groups())
        return await answer

    async def _write_groups(self) -> None:
        """Whatever came in while the last group was written is the next group."""
        while not self.waiting.empty():
            group = [self.waiting.get_nowait() for _ in range(min(_GROUP, self.waiting.qsize()))]
            for dataset in sorted({name for name, _, _ in group}):
                mine = [(entry, answer) for name, entry, answer in group if name == dataset]
                try:
                    answers = await asyncio.to_thread(
                        submit_requests, self.project, dataset, [entry for entry, _ in mine], rules=self.rules
                    )
                except Exception as error:
                    for _, answer in mine:
                        answer.set_exception(error)
                    continue
                for (_, answer), result in zip(mine, answers, strict=True):
                    answer.set_result(result)

    def _find_bucket(self, ticket: Ticket, now_us: int) -> Bucket:
        per_minute = ticket.rules.per_minute
        return self.buckets.setdefault(ticket.tenant, Bucket(per_minute, per_minute, now_us))


def open_intake(project: Project) -> Intake:
    """The application of a project, with the subject keys of its datasets.

    Raises:
        ProjectError: The rules have problems.
    """
    keys: dict[str, bytes] = {}
    for dataset in list_recipes(project.places):
        with contextlib.suppress(MlopsError):  # a dataset whose key is elsewhere is not served here
            keys[dataset] = load_subject_key(project.places, load_recipe(project.places, dataset).subject_key)
    return Intake(project, load_rules(project.places), keys)


def serve_intake(intake: Intake, *, port: int) -> None:
    """Serve on 127.0.0.1 until interrupted."""
    import uvicorn  # 0.2 s, and only this command needs it

    config = uvicorn.Config(intake, host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run()


async def _read_body(receive: Receive) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return body
