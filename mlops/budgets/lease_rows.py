"""Rows of leases and of the operations on them: reading, writing, and their JSON in events.

Leaves to others: deciding what may be granted (`leases`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import sqlalchemy as sa

from mlops.budgets.accounts import Account
from mlops.budgets.lease_types import Lease, Purpose, Settlement, SpendLimit
from mlops.budgets.sql_budgets import lease_operations, leases
from mlops.units import Accelerators


@dataclass(frozen=True)
class LeaseRow:
    """A lease as it is stored; amounts are micro-USD, times microseconds."""

    lease_id: str
    fencing_token: int
    budget: str
    kind: str
    milli: int
    holder: str
    sweep_id: str
    group_id: str
    purpose: str
    is_live: bool
    started_us: int
    segment_started_us: int
    """When the running segment was paid: the lease's start or its last renewal."""
    window_ends_us: int
    expires_us: int
    tail_us: int
    """Grace and checkpoint time together."""
    price_micro_usd_per_hour: int
    reserved_micro_usd: int
    charged_micro_usd: int
    paid_micro_usd: int
    """Sum of all reservations: always reserved + charged + refunded."""
    refunded_micro_usd: int
    scopes: tuple[tuple[str, int, int | None], ...]
    """Scope, start of period and cap of every account that paid the running segment."""
    ended_us: int | None
    cause: str

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "scopes": [list(scope) for scope in self.scopes]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LeaseRow:
        """The value that `to_json` wrote."""
        scopes = tuple((str(scope), int(start), cap) for scope, start, cap in content["scopes"])
        return cls(**{**content, "scopes": scopes})

    def list_accounts(self) -> tuple[Account, ...]:
        """The accounts that paid the running segment, without balances."""
        return tuple(Account(scope, start, "once", cap, exists=True) for scope, start, cap in self.scopes)

    def list_limits(self) -> tuple[SpendLimit, ...]:
        """Own limits of the sweep or trial."""
        return tuple(SpendLimit(s, cap or 0) for s, _, cap in self.scopes if not s.startswith("budget:"))

    def to_lease(self) -> Lease:
        """What the holder sees."""
        return Lease(
            lease_id=self.lease_id,
            fencing_token=self.fencing_token,
            budget=self.budget,
            accelerators=Accelerators(self.kind, self.milli / 1000),
            holder=self.holder,
            sweep_id=self.sweep_id,
            purpose=cast(Purpose, self.purpose),
            started_us=self.started_us,
            window_ends_us=self.window_ends_us,
            expires_us=self.expires_us,
            price_micro_usd_per_hour=self.price_micro_usd_per_hour,
            reserved_micro_usd=self.reserved_micro_usd,
            charged_micro_usd=self.charged_micro_usd,
            is_live=self.is_live,
        )

    def to_settlement(self, *, refunded: int) -> Settlement:
        """How it ended."""
        assert self.ended_us is not None
        return Settlement(
            lease_id=self.lease_id,
            ended_us=self.ended_us,
            charged_micro_usd=self.charged_micro_usd,
            refunded_micro_usd=refunded,
            cause=self.cause,
        )


@dataclass(frozen=True)
class Operation:
    """An operation that was done under a key."""

    digest: str
    result: Mapping[str, Any]

    def to_lease(self) -> Lease:
        """The answer of `reserve` or `renew`."""
        kind, count = self.result["accelerators"]["kind"], self.result["accelerators"]["count"]
        return Lease(**{**self.result, "accelerators": Accelerators(kind, count)})

    def to_settlement(self) -> Settlement:
        """The answer of `settle`."""
        return Settlement(**self.result)


def request_digest(operation: str, request: object) -> str:
    """Digest of a request, to tell a repetition from another request under the same key."""
    return hashlib.sha256(f"{operation}:{request!r}".encode()).hexdigest()


_FIND_OPERATION = sa.select(lease_operations.c.digest, lease_operations.c.result).where(
    lease_operations.c.key == sa.bindparam("p_key")
)
_FIND_OPERATIONS = sa.select(lease_operations.c.key, lease_operations.c.digest, lease_operations.c.result).where(
    lease_operations.c.key.in_(sa.bindparam("p_keys", expanding=True))
)
_FIND_LEASE = sa.select(leases).where(leases.c.lease_id == sa.bindparam("p_lease_id"))
_FIND_LEASES = sa.select(leases).where(leases.c.lease_id.in_(sa.bindparam("p_lease_ids", expanding=True)))
_SUM_LIVE = (
    sa.select(leases.c.budget, sa.func.sum(leases.c.milli))
    .where(leases.c.is_live, leases.c.kind == sa.bindparam("p_kind"))
    .group_by(leases.c.budget)
)
_MUTABLE = (
    "is_live", "segment_started_us", "window_ends_us", "expires_us", "reserved_micro_usd", "charged_micro_usd",
    "paid_micro_usd", "refunded_micro_usd", "scopes", "ended_us", "cause",
)  # fmt: skip
_UPDATE = (
    leases.update()
    .where(leases.c.lease_id == sa.bindparam("p_lease_id"))
    .values({name: sa.bindparam(f"p_{name}") for name in _MUTABLE})
)
_INSERT, _INSERT_OPERATION = leases.insert(), lease_operations.insert()
_SLICE = 500
"""Keys per query: databases bound the number of parameters."""


def find_operation(connection: sa.Connection, key: str) -> Operation | None:
    """What was done under a key before."""
    row = connection.execute(_FIND_OPERATION, {"p_key": key}).one_or_none()
    return Operation(row.digest, json.loads(row.result)) if row else None


def find_operations(connection: sa.Connection, keys: Sequence[str]) -> dict[str, Operation]:
    """As `find_operation`, for many."""
    found: dict[str, Operation] = {}
    for first in range(0, len(keys), _SLICE):
        for row in connection.execute(_FIND_OPERATIONS, {"p_keys": keys[first : first + _SLICE]}):
            found[row.key] = Operation(row.digest, json.loads(row.result))
    return found


def record(connection: sa.Connection, *, key: str, operation: str, digest: str, result: Lease | Settlement) -> None:
    """Remember the answer under its key."""
    record_many(connection, [(key, operation, digest, result)])


def record_many(connection: sa.Connection, done: Sequence[tuple[str, str, str, Lease | Settlement]]) -> None:
    """As `record` for several: key, operation, digest and answer."""
    connection.execute(
        _INSERT_OPERATION,
        [
            {"key": key, "operation": operation, "digest": digest, "lease_id": result.lease_id,
             "result": json.dumps(_result_json(result))}
            for key, operation, digest, result in done
        ],
    )  # fmt: skip


def _result_json(result: Lease | Settlement) -> dict[str, Any]:
    content = dict(vars(result))
    if isinstance(result, Lease):
        content["accelerators"] = dict(vars(result.accelerators))
    return content


def insert(connection: sa.Connection, *rows: LeaseRow) -> None:
    """New rows."""
    connection.execute(_INSERT, [_to_columns(row) for row in rows])


def update(connection: sa.Connection, *rows: LeaseRow) -> None:
    """Write what changes in the life of a lease."""
    parameters = []
    for row in rows:
        columns = _to_columns(row)
        parameters.append({f"p_{name}": columns[name] for name in ("lease_id", *_MUTABLE)})
    connection.execute(_UPDATE, parameters)


def find(connection: sa.Connection, lease_id: str) -> LeaseRow | None:
    """One row."""
    row = connection.execute(_FIND_LEASE, {"p_lease_id": lease_id}).one_or_none()
    return _from_row(row) if row else None


def find_many(connection: sa.Connection, lease_ids: Sequence[str]) -> dict[str, LeaseRow]:
    """Rows by id."""
    found: dict[str, LeaseRow] = {}
    for first in range(0, len(lease_ids), _SLICE):
        for row in connection.execute(_FIND_LEASES, {"p_lease_ids": lease_ids[first : first + _SLICE]}):
            found[row.lease_id] = _from_row(row)
    return found


def list_live(connection: sa.Connection, *, expired_at_us: int | None = None) -> tuple[LeaseRow, ...]:
    """Live rows by start; with a time, only those that expired by then."""
    query = sa.select(leases).where(leases.c.is_live).order_by(leases.c.fencing_token)
    if expired_at_us is not None:
        query = query.where(leases.c.expires_us <= expired_at_us)
    return tuple(_from_row(row) for row in connection.execute(query))


def list_of_sweep(connection: sa.Connection, sweep_id: str) -> tuple[LeaseRow, ...]:
    """Rows of a sweep's leases, ended ones too, by start."""
    query = sa.select(leases).where(leases.c.sweep_id == sweep_id).order_by(leases.c.fencing_token)
    return tuple(_from_row(row) for row in connection.execute(query))


def sum_live(connection: sa.Connection, kind: str) -> tuple[tuple[str, int], ...]:
    """Thousandths of a kind in live leases, per budget."""
    return tuple((budget, int(units)) for budget, units in connection.execute(_SUM_LIVE, {"p_kind": kind}))


_FIELDS = tuple(field.name for field in fields(LeaseRow))


def _to_columns(row: LeaseRow) -> dict[str, Any]:
    columns = {name: getattr(row, name) for name in _FIELDS}
    columns["scopes"] = json.dumps(row.scopes, separators=(",", ":"))
    return columns


def _from_row(row: sa.Row[Any]) -> LeaseRow:
    return LeaseRow.from_json({**row._mapping, "scopes": json.loads(row.scopes)})
