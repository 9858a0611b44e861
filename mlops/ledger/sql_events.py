"""The event log: append-only, numbered without gaps, each event carrying the digest of the one before.

`sha256(previous digest, number, time, kind, subject, canonical JSON of the body)`: changing, dropping or inserting an
event breaks every later digest. Leaves to others: meaning and replay of events.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
events = sa.Table(
    "events",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
)
GENESIS = "0" * 64
_SELECT_HEAD = sa.select(events.c.number, events.c.at_us, events.c.sha256).order_by(events.c.number.desc()).limit(1)
_INSERT = events.insert()
_encode_body = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_encode_link = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Head:
    """The last event of the chain."""

    number: int
    at_us: int
    sha256: str


@dataclass(frozen=True)
class Event:
    """One change."""

    number: int
    at_us: int
    kind: str
    subject: str
    body: dict[str, Any]
    sha256: str
    """Chained digest, 64 hex digits."""


def chain_digest(previous: str, *, number: int, at_us: int, kind: str, subject: str, body: str) -> str:
    """Digest of an event on top of `previous`."""
    line = _encode_link([previous, number, at_us, kind, subject, body])
    return hashlib.sha256(line.encode()).hexdigest()


def find_head(connection: sa.Connection) -> Head:
    """The last event, or what stands before the first."""
    row = connection.execute(_SELECT_HEAD).one_or_none()
    return Head(row.number, row.at_us, row.sha256) if row else Head(0, 0, GENESIS)


def append(connection: sa.Connection, head: Head, *, at_us: int, kind: str, subject: str, body: dict[str, Any]) -> Head:
    """Append one event after `head`, the chain's last; call it inside a write transaction only."""
    return append_many(connection, head, at_us=at_us, entries=[(kind, subject, body)])


def append_many(
    connection: sa.Connection, head: Head, *, at_us: int, entries: Sequence[tuple[str, str, dict[str, Any]]]
) -> Head:
    """Append events (kind, subject, body) after `head`, in order; returns the new last."""
    rows = []
    for kind, subject, body in entries:
        number = head.number + 1
        text = _encode_body(body)
        digest = chain_digest(head.sha256, number=number, at_us=at_us, kind=kind, subject=subject, body=text)
        rows.append(
            {"number": number, "at_us": at_us, "kind": kind, "subject": subject, "body": text, "sha256": digest}
        )
        head = Head(number, at_us, digest)
    if rows:
        connection.execute(_INSERT, rows)
    return head


def load_events(
    connection: sa.Connection, *, after: int = 0, kind_prefix: str = "", subject: str | None = None
) -> Iterator[Event]:
    """Events in order, from number `after + 1` on."""
    query = sa.select(events).where(events.c.number > after).order_by(events.c.number)
    if kind_prefix:
        query = query.where(events.c.kind.startswith(kind_prefix, autoescape=True))
    if subject is not None:
        query = query.where(events.c.subject == subject)
    for row in connection.execute(query):
        yield Event(row.number, row.at_us, row.kind, row.subject, json.loads(row.body), row.sha256)


def find_broken_event(connection: sa.Connection) -> int | None:
    """Number of the first event whose digest or number does not follow from the ones before; None if all do."""
    previous, expected = GENESIS, 1
    for row in connection.execute(sa.select(events).order_by(events.c.number)):
        digest = chain_digest(
            previous, number=row.number, at_us=row.at_us, kind=row.kind, subject=row.subject, body=row.body
        )
        if row.number != expected or digest != row.sha256:
            return expected
        previous, expected = row.sha256, expected + 1
    return None
