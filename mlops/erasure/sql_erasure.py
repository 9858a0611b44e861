"""SQL of erasure requests, submissions, batches, retrains and certificates (migration 0030).

Plain reads and writes inside a transaction that the caller opened. Leaves to others: which change is allowed when
(requests.py, batches.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mlops.ledger.connection import Transaction

metadata = sa.MetaData()
requests = sa.Table(
    "erasure_requests",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("deadline_us", sa.BigInteger, nullable=False),
    sa.Column("fenced_us", sa.BigInteger, nullable=True),
    sa.Column("ended_us", sa.BigInteger, nullable=True),
    sa.Column("batch_id", sa.Text, nullable=True, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("erasure_requests_by_subject", "dataset", "subject"),
    sa.Index("erasure_requests_by_state", "dataset", "state"),
)
submissions = sa.Table(
    "erasure_submissions",
    metadata,
    sa.Column("receipt_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False, index=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("nonce", sa.Text, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Index("erasure_submissions_once", "tenant", "nonce", unique=True),
)
batches = sa.Table(
    "erasure_batches",
    metadata,
    sa.Column("batch_id", sa.Text, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("opened_us", sa.BigInteger, nullable=False),
    sa.Column("changed_us", sa.BigInteger, nullable=False),
    sa.Column("forced", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("runner", sa.Text, nullable=False),
    sa.Column("fencing_token", sa.BigInteger, nullable=False),
    sa.Column("seen_us", sa.BigInteger, nullable=False),
)
retrains = sa.Table(
    "erasure_retrains",
    metadata,
    sa.Column("batch_id", sa.Text, primary_key=True),
    sa.Column("product", sa.Text, primary_key=True),
    sa.Column("dataset", sa.Text, nullable=False, index=True),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("forced", sa.Text, nullable=False),
    sa.Column("ended_us", sa.BigInteger, nullable=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=True),
)
certificates = sa.Table(
    "erasure_certificates",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.Text, nullable=False, unique=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("envelope", sa.Text, nullable=False),
    sa.Column("at_us", sa.BigInteger, nullable=False),
)

RECEIVED, IDENTITY_HOLD, LEGAL_HOLD, REFUSED = "received", "identity-hold", "legal-hold", "refused"
FENCED, BATCHED, CERTIFIED = "fenced", "batched", "certified"
OPEN_REQUESTS = (RECEIVED, IDENTITY_HOLD, LEGAL_HOLD, FENCED, BATCHED)
"""States of a request that still has to be answered."""
_CHUNK = 400


@dataclass(frozen=True)
class RequestRow:
    """One person's withdrawal from one dataset."""

    request_id: str
    dataset: str
    subject: str
    """Keyed hash, 64 hex digits; the id itself is nowhere."""
    channel: str
    """`command`, `tenant:<name>`, or `retention`: rows past the dataset's retention."""
    state: str
    """`received`, `identity-hold`, `legal-hold`, `refused`, `fenced`, `batched`, `certified`."""
    received_us: int
    deadline_us: int
    fenced_us: int | None
    """Since when nothing new may hold the person."""
    ended_us: int | None
    batch_id: str | None
    reason: str
    """Of a hold or a refusal; for people."""


@dataclass(frozen=True)
class SubmissionRow:
    """One asking; several may belong to one request."""

    receipt_id: str
    request_id: str
    tenant: str
    """Its channel."""
    nonce: str
    received_us: int


@dataclass(frozen=True)
class BatchRow:
    """Requests of a dataset that are handled together."""

    batch_id: str
    dataset: str
    state: str
    """See `mlops.erasure.batches.STATES`."""
    opened_us: int
    changed_us: int
    forced: str
    """Why it did not wait for the window; empty when it did."""
    facts: dict[str, Any]
    """What its steps found and did, by step; digests and counts only."""
    note: str
    """The last obstacle, for people; empty when there is none."""
    runner: str
    """`host:pid:start` of the process at work; empty when nobody is."""
    fencing_token: int
    """Grows with each runner: what a former one writes is refused."""
    seen_us: int


@dataclass(frozen=True)
class RetrainRow:
    """One product that was trained again for a batch."""

    batch_id: str
    product: str
    dataset: str
    started_us: int
    forced: str
    ended_us: int | None
    outcome: str
    """`running`, `passed`, `refused` or `failed`."""
    number: int | None
    """The new model version."""


@dataclass(frozen=True)
class CertificateRow:
    """One signed certificate."""

    number: int
    batch_id: str
    dataset: str
    digest: str
    """`sha256:…` of the envelope."""
    previous: str
    """Digest of the certificate before it; empty for the first."""
    envelope: str
    at_us: int


def find_open_requests(connection: sa.Connection, dataset: str, subjects: Iterable[str]) -> dict[str, RequestRow]:
    """Keyed hash to the request that is still to be answered."""
    wanted = sorted(set(subjects))
    found: dict[str, RequestRow] = {}
    for start in range(0, len(wanted), _CHUNK):
        query = sa.select(requests).where(
            requests.c.dataset == dataset,
            requests.c.subject.in_(wanted[start : start + _CHUNK]),
            requests.c.state.in_(OPEN_REQUESTS),
        )
        found |= {row.subject: RequestRow(**row._mapping) for row in connection.execute(query)}
    return found


def find_nonces(connection: sa.Connection, wanted: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those (channel, nonce) that were seen before."""
    by_tenant: dict[str, list[str]] = {}
    for tenant, nonce in wanted:
        by_tenant.setdefault(tenant, []).append(nonce)
    found: set[tuple[str, str]] = set()
    for tenant, nonces in by_tenant.items():
        for start in range(0, len(nonces), _CHUNK):
            query = sa.select(submissions.c.nonce).where(
                submissions.c.tenant == tenant, submissions.c.nonce.in_(nonces[start : start + _CHUNK])
            )
            found |= {(tenant, nonce) for nonce in connection.scalars(query)}
    return found


def list_requests(
    connection: sa.Connection,
    *,
    dataset: str | None = None,
    states: Iterable[str] | None = None,
    batch_id: str | None = None,
) -> tuple[RequestRow, ...]:
    """Requests by time of receipt."""
    query = sa.select(requests).order_by(requests.c.received_us, requests.c.request_id)
    if dataset is not None:
        query = query.where(requests.c.dataset == dataset)
    if states is not None:
        query = query.where(requests.c.state.in_(tuple(states)))
    if batch_id is not None:
        query = query.where(requests.c.batch_id == batch_id)
    return tuple(RequestRow(**row._mapping) for row in connection.execute(query))


def find_request(connection: sa.Connection, request_id: str) -> RequestRow | None:
    """One request by its id, or by a receipt's id."""
    known = connection.scalar(sa.select(submissions.c.request_id).where(submissions.c.receipt_id == request_id))
    row = connection.execute(sa.select(requests).where(requests.c.request_id == (known or request_id))).one_or_none()
    return RequestRow(**row._mapping) if row else None


def insert_many(transaction: Transaction, table: sa.Table, rows: Iterable[Any]) -> None:
    """Insert row values; facts become JSON."""
    values = [_encode(vars(row)) for row in rows]
    if values:
        transaction.connection.execute(table.insert(), values)


def update_requests(transaction: Transaction, request_ids: Iterable[str], **values: Any) -> None:
    """Change some requests, each with an event that names its new state."""
    wanted = sorted(request_ids)
    for start in range(0, len(wanted), _CHUNK):
        chosen = requests.c.request_id.in_(wanted[start : start + _CHUNK])
        transaction.connection.execute(requests.update().where(chosen).values(**values))
    state = values.get("state", "changed")
    facts = {name: value for name, value in values.items() if name in ("batch_id", "reason", "deadline_us")}
    transaction.append_many([(f"erasure-request.{state}", request_id, facts) for request_id in wanted])


def find_open_batch(connection: sa.Connection, dataset: str) -> BatchRow | None:
    """The one batch of a dataset that is not certified yet."""
    query = sa.select(batches).where(batches.c.dataset == dataset, batches.c.state != CERTIFIED)
    row = connection.execute(query).one_or_none()
    return _batch(row) if row else None


def find_batch(connection: sa.Connection, batch_id: str) -> BatchRow | None:
    """One batch."""
    row = connection.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).one_or_none()
    return _batch(row) if row else None


def list_batches(connection: sa.Connection, *, dataset: str | None = None) -> tuple[BatchRow, ...]:
    """Batches, newest first."""
    query = sa.select(batches).order_by(batches.c.opened_us.desc(), batches.c.batch_id.desc())
    if dataset is not None:
        query = query.where(batches.c.dataset == dataset)
    return tuple(_batch(row) for row in connection.execute(query))


def take_over(transaction: Transaction, row: BatchRow, *, runner: str) -> None:
    """Another runner holds the batch from here on; what the former one writes is refused."""
    transaction.connection.execute(
        batches.update()
        .where(batches.c.batch_id == row.batch_id)
        .values(runner=runner, fencing_token=row.fencing_token + 1, seen_us=transaction.now_us)
    )
    transaction.append("erasure-batch.taken", row.batch_id, {"after": row.runner, "state": row.state})


def update_batch(transaction: Transaction, batch_id: str, *, fencing_token: int, **values: Any) -> bool:
    """Change a batch; False when another runner has taken it over."""
    changed = transaction.connection.execute(
        batches.update()
        .where(batches.c.batch_id == batch_id, batches.c.fencing_token == fencing_token)
        .values(**_encode(values))
    )
    return changed.rowcount == 1


def list_retrains(connection: sa.Connection, *, dataset: str) -> tuple[RetrainRow, ...]:
    """Retrains for a dataset's batches, newest first."""
    query = sa.select(retrains).where(retrains.c.dataset == dataset).order_by(retrains.c.started_us.desc())
    return tuple(RetrainRow(**row._mapping) for row in connection.execute(query))


def end_retrain(transaction: Transaction, batch_id: str, product: str, *, outcome: str, number: int | None) -> None:
    """How a retrain came out."""
    transaction.connection.execute(
        retrains.update()
        .where(retrains.c.batch_id == batch_id, retrains.c.product == product)
        .values(ended_us=transaction.now_us, outcome=outcome, number=number)
    )
    transaction.append(f"erasure-retrain.{outcome}", batch_id, {"product": product, "number": number})


def list_certificates(connection: sa.Connection) -> tuple[CertificateRow, ...]:
    """Every certificate, oldest first."""
    query = sa.select(certificates).order_by(certificates.c.number)
    return tuple(CertificateRow(**row._mapping) for row in connection.execute(query))


def _encode(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, sort_keys=True, allow_nan=False) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _batch(row: Any) -> BatchRow:
    content = dict(row._mapping)
    return BatchRow(**{**content, "facts": json.loads(content["facts"])})
