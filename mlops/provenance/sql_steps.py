"""SQL of steps and of the edges between digests that they make. Leaves to others: signing (attestation.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
steps = sa.Table(
    "steps",
    metadata,
    sa.Column("step_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("memo_key", sa.Text, nullable=False),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("finished_us", sa.BigInteger, nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("outputs", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("envelope", sa.Text, nullable=True),
)
edges = sa.Table(
    "edges",
    metadata,
    sa.Column("step_id", sa.Text, primary_key=True),
    sa.Column("direction", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
)

_CHUNK = 400
"""Digests per query; databases bound the number of parameters."""


@dataclass(frozen=True)
class StepRecord:
    """One finished step of a release: what went in, what came out."""

    step_id: str
    kind: str
    """`dataset-import`, `source-check`, `sweep`, `export`, `gate`, `registration`, `image`, `probe`, …"""
    product: str
    memo_key: str
    """Digest of `inputs`; the same key means the same work."""
    started_us: int
    finished_us: int
    inputs: dict[str, str]
    """Name to `sha256:…`."""
    outputs: dict[str, str]
    """Name to `sha256:…`."""
    facts: dict[str, Any]
    """Small JSON results: parameters, verdict, version number, lease ids, paths below `.mlops/`."""
    envelope: str | None
    """DSSE envelope (JSON) of the step's in-toto statement."""


def insert_step(connection: sa.Connection, record: StepRecord) -> None:
    """Add a step and its edges."""
    connection.execute(
        steps.insert().values(
            step_id=record.step_id,
            kind=record.kind,
            product=record.product,
            memo_key=record.memo_key,
            started_us=record.started_us,
            finished_us=record.finished_us,
            inputs=json.dumps(record.inputs, sort_keys=True),
            outputs=json.dumps(record.outputs, sort_keys=True),
            facts=json.dumps(record.facts, sort_keys=True, allow_nan=False),
            envelope=record.envelope,
        )
    )
    rows = [
        {"step_id": record.step_id, "direction": direction, "name": name, "digest": digest}
        for direction, named in (("in", record.inputs), ("out", record.outputs))
        for name, digest in named.items()
    ]
    if rows:
        connection.execute(edges.insert(), rows)


def find_steps(
    connection: sa.Connection,
    *,
    kind: str | None = None,
    product: str | None = None,
    memo_key: str | None = None,
    newest_first: bool = True,
) -> Iterator[StepRecord]:
    """Steps that match, newest first."""
    query = sa.select(steps)
    for column, value in ((steps.c.kind, kind), (steps.c.product, product), (steps.c.memo_key, memo_key)):
        if value is not None:
            query = query.where(column == value)
    order = (steps.c.finished_us, steps.c.step_id)
    query = query.order_by(*(column.desc() if newest_first else column for column in order))
    for row in connection.execute(query):
        yield _record(row)


def find_newest_steps(connection: sa.Connection, *, product: str) -> dict[str, StepRecord]:
    """Kind to the newest step of that kind of a product."""
    newest = (
        sa.select(steps.c.kind, sa.func.max(steps.c.finished_us).label("finished_us"))
        .where(steps.c.product == product)
        .group_by(steps.c.kind)
        .subquery()
    )
    is_newest = sa.and_(steps.c.kind == newest.c.kind, steps.c.finished_us == newest.c.finished_us)
    query = sa.select(steps).join(newest, is_newest).where(steps.c.product == product).order_by(steps.c.step_id)
    return {row.kind: _record(row) for row in connection.execute(query)}


def find_steps_of_digest(connection: sa.Connection, digest: str, *, direction: str) -> Iterator[StepRecord]:
    """Steps that have `digest` among their outputs (`out`) or inputs (`in`), newest first."""
    query = (
        sa.select(steps)
        .join(edges, edges.c.step_id == steps.c.step_id)
        .where(edges.c.digest == digest, edges.c.direction == direction)
        .distinct()
        .order_by(steps.c.finished_us.desc(), steps.c.step_id.desc())
    )
    for row in connection.execute(query):
        yield _record(row)


def find_steps_of_digests(
    connection: sa.Connection, digests: Iterable[str], *, direction: str
) -> dict[str, tuple[StepRecord, ...]]:
    """For each digest that has any: the steps with it among their outputs (`out`) or inputs (`in`)."""
    found: dict[str, dict[str, StepRecord]] = {}
    wanted = sorted(digests)
    for start in range(0, len(wanted), _CHUNK):
        query = (
            sa.select(edges.c.digest, *steps.c)
            .join(steps, edges.c.step_id == steps.c.step_id)
            .where(edges.c.digest.in_(wanted[start : start + _CHUNK]), edges.c.direction == direction)
        )
        for row in connection.execute(query):
            found.setdefault(row.digest, {})[row.step_id] = _record(row)
    return {digest: tuple(records.values()) for digest, records in found.items()}


def load_edges(connection: sa.Connection, step_id: str) -> dict[str, dict[str, str]]:
    """Direction (`in`, `out`) to the named digests, as the table of edges has them."""
    found: dict[str, dict[str, str]] = {"in": {}, "out": {}}
    for row in connection.execute(sa.select(edges).where(edges.c.step_id == step_id)):
        found[row.direction][row.name] = row.digest
    return found


def _record(row: Any) -> StepRecord:
    return StepRecord(
        step_id=row.step_id,
        kind=row.kind,
        product=row.product,
        memo_key=row.memo_key,
        started_us=row.started_us,
        finished_us=row.finished_us,
        inputs=json.loads(row.inputs),
        outputs=json.loads(row.outputs),
        facts=json.loads(row.facts),
        envelope=row.envelope,
    )
