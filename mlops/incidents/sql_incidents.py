"""SQL of incidents (migration 0034). Leaves to others: when one is opened (opening, automatic) and closed (closing)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mlops.ledger.connection import Transaction

metadata = sa.MetaData()
incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("incident_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("product", sa.Text, nullable=False),
    sa.Column("severity", sa.Integer, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("opened_us", sa.BigInteger, nullable=False),
    sa.Column("opened_by", sa.Text, nullable=False),
    sa.Column("case_text", sa.Text, nullable=False),
    sa.Column("case_digest", sa.Text, nullable=False),
    sa.Column("affected", sa.Text, nullable=False),
    sa.Column("closed_us", sa.BigInteger, nullable=True),
    sa.Column("closed_by", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
)

OPEN, CLOSED = "open", "closed"
ANSWER, DEPLOYMENT = "answer", "deployment"
"""Kinds: an answer that was wrong (it has a case), a version that failed in an environment (it has none)."""


@dataclass(frozen=True)
class IncidentRow:
    """One incident."""

    incident_id: str
    key: str
    """The same thing reported twice has the same key."""
    kind: str
    product: str
    severity: int
    title: str
    reason: str
    state: str
    opened_us: int
    opened_by: str
    """Person, or `mlops` for what the machine noticed itself."""
    case_text: str
    """YAML of the case file; empty for a deployment."""
    case_digest: str
    """Digest of what the case asks; see `IncidentCase.digest`."""
    affected: dict[str, Any]
    """What was affected when it was opened: `versions`, `environments`, `image`."""
    closed_us: int | None = None
    closed_by: str = ""
    evidence: dict[str, Any] | None = None
    """What closed it: environment to version, gate result and verdict."""

    @property
    def case_path(self) -> str:
        """Where the case lies in the project; empty without one."""
        return f"evaluation/incidents/{self.incident_id}.yaml" if self.case_text else ""


def insert_incident(transaction: Transaction, row: IncidentRow) -> IncidentRow:
    """Open an incident, or give back the one that has the same key."""
    known = find_by_key(transaction.connection, row.key)
    if known is not None:
        return known
    values = {**vars(row), "affected": json.dumps(row.affected, sort_keys=True), "evidence": ""}
    transaction.connection.execute(incidents.insert().values(**values))
    transaction.append(
        "incident.opened",
        row.incident_id,
        {"product": row.product, "kind": row.kind, "severity": row.severity, "case": row.case_digest},
    )
    return row


def close_row(transaction: Transaction, incident_id: str, *, who: str, evidence: dict[str, Any]) -> IncidentRow:
    """Close an open incident; one that is closed already stays as it is."""
    row = load_incident(transaction.connection, incident_id)
    assert row is not None
    if row.state == CLOSED:
        return row
    transaction.connection.execute(
        incidents.update()
        .where(incidents.c.incident_id == incident_id)
        .values(
            state=CLOSED, closed_us=transaction.now_us, closed_by=who, evidence=json.dumps(evidence, sort_keys=True)
        )
    )
    transaction.append("incident.closed", incident_id, {"by": who, "evidence": evidence})
    closed = load_incident(transaction.connection, incident_id)
    assert closed is not None
    return closed


def find_by_key(connection: sa.Connection, key: str) -> IncidentRow | None:
    """The incident with this key."""
    row = connection.execute(sa.select(incidents).where(incidents.c.key == key)).one_or_none()
    return None if row is None else _read(row)


def load_incident(connection: sa.Connection, incident_id: str) -> IncidentRow | None:
    """One incident by id."""
    row = connection.execute(sa.select(incidents).where(incidents.c.incident_id == incident_id)).one_or_none()
    return None if row is None else _read(row)


def list_incidents(
    connection: sa.Connection, *, state: str | None = None, product: str | None = None
) -> tuple[IncidentRow, ...]:
    """Incidents, the gravest and oldest first."""
    query = sa.select(incidents).order_by(incidents.c.severity, incidents.c.opened_us, incidents.c.incident_id)
    if state is not None:
        query = query.where(incidents.c.state == state)
    if product is not None:
        query = query.where(incidents.c.product == product)
    return tuple(_read(row) for row in connection.execute(query))


def _read(row: Any) -> IncidentRow:
    fields = dict(row._mapping)
    fields["affected"] = json.loads(row.affected)
    fields["evidence"] = json.loads(row.evidence) if row.evidence else None
    return IncidentRow(**fields)
