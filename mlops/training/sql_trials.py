"""The ledger's rows of sweeps, trials, attempts, reports and the leases of worker groups (migrations 0003, 0037, 0061).

Plain reads and writes inside a transaction that the caller opened. Leaves to others: what they mean
(mlops/training/sweep_book), leases themselves (mlops/budgets).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_BIG = sa.BigInteger
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("sweep_id", sa.Text, primary_key=True),
    sa.Column("product", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("inputs", sa.Text, nullable=False),
    sa.Column("driver", sa.Text, nullable=False),
    sa.Column("started_us", _BIG, nullable=False),
    sa.Column("seen_us", _BIG, nullable=False),
    sa.Column("finished_us", _BIG, nullable=True),
    sa.Column("winner", sa.Integer, nullable=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("mlflow_run_id", sa.Text, nullable=False),
    sa.Column("wish", sa.Text, nullable=False),
)
trials = sa.Table(
    "trials",
    metadata,
    sa.Column("sweep_id", sa.Text, sa.ForeignKey("sweeps.sweep_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("seed", _BIG, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("weights_file", sa.Text, nullable=False),
    sa.Column("weights_sha256", sa.Text, nullable=False),
    sa.Column("mlflow_run_id", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("started_us", _BIG, nullable=False),
    sa.Column("finished_us", _BIG, nullable=True),
)
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("sweep_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("worker_group", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("fencing_token", _BIG, nullable=False),
    sa.Column("started_us", _BIG, nullable=False),
    sa.Column("ended_us", _BIG, nullable=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("busy_us", _BIG, nullable=False),
    sa.Column("data_wait_us", _BIG, nullable=False),
    sa.Column("at_epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("at_step", sa.Integer, nullable=False, server_default="0"),
    sa.ForeignKeyConstraint(["sweep_id", "number"], ["trials.sweep_id", "trials.number"]),
)
reports = sa.Table(
    "reports",
    metadata,
    sa.Column("sweep_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("at_us", _BIG, nullable=False),
    sa.ForeignKeyConstraint(["sweep_id", "number"], ["trials.sweep_id", "trials.number"]),
)
group_leases = sa.Table(
    "group_leases",
    metadata,
    sa.Column("sweep_id", sa.Text, sa.ForeignKey("sweeps.sweep_id"), primary_key=True),
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("worker_group", sa.Text, nullable=False),
    sa.Column("fencing_token", _BIG, nullable=False),
    sa.Column("accelerators", sa.Text, nullable=False),
    sa.Column("started_us", _BIG, nullable=False),
    sa.Column("ended_us", _BIG, nullable=True),
)
warm_groups = sa.Table(
    "warm_groups",
    metadata,
    sa.Column("worker_group", sa.Text, primary_key=True),
    sa.Column("likeness", sa.Text, nullable=False, index=True),
    sa.Column("sweep_id", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("fencing_token", _BIG, nullable=False),
    sa.Column("until_us", _BIG, nullable=False),
)

RUNNING, COMPLETE, PRUNED, FAILED = "RUNNING", "COMPLETE", "PRUNED", "FAILED"
"""States of a trial; a trial that waits for its next attempt is RUNNING."""


@dataclass(frozen=True)
class SweepRow:
    """One sweep."""

    sweep_id: str
    product: str
    state: str
    """`running`, `finished`, `stopped` or `failed`."""
    spec: dict[str, Any]
    inputs: dict[str, str]
    driver: str
    """`host:pid:start` of the process that drives it."""
    started_us: int
    seen_us: int
    finished_us: int | None
    winner: int | None
    reason: str
    mlflow_run_id: str
    wish: str
    """Empty, or `stop`: what another process asks of the driver."""


@dataclass(frozen=True)
class TrialRow:
    """One trial; its metrics are those of its last report."""

    number: int
    state: str
    params: dict[str, Any]
    seed: int
    metrics: dict[str, float]
    weights_file: str
    weights_sha256: str
    mlflow_run_id: str
    reason: str
    started_us: int
    finished_us: int | None


@dataclass(frozen=True)
class AttemptRow:
    """One run of a trial on a worker group."""

    number: int
    attempt: int
    worker_group: str
    lease_id: str
    fencing_token: int
    started_us: int
    ended_us: int | None
    outcome: str
    reason: str
    busy_us: int
    data_wait_us: int
    at_epoch: int
    """That it was in when it was last asked, from 0, and the steps of it that were done; of a running one."""
    at_step: int


@dataclass(frozen=True)
class ReportRow:
    """The metrics of one epoch."""

    number: int
    epoch: int
    attempt: int
    metrics: dict[str, float]
    at_us: int


@dataclass(frozen=True)
class GroupLeaseRow:
    """A lease that a worker group of a sweep held."""

    lease_id: str
    worker_group: str
    fencing_token: int
    accelerators: str
    started_us: int
    ended_us: int | None


def insert(connection: sa.Connection, table: sa.Table, **values: Any) -> None:
    """Insert one row; dicts become JSON."""
    connection.execute(table.insert(), _encode(values))


def update(connection: sa.Connection, table: sa.Table, *, where: Mapping[str, Any], **values: Any) -> int:
    """Change the rows whose columns equal `where`; gives how many."""
    missing = tuple(name for name, value in where.items() if value is None)
    present = {f"its_{name}": value for name, value in where.items() if value is not None}
    query = _make_update(table, tuple(values), tuple(present), missing)
    return connection.execute(query, {**_encode(values), **present}).rowcount


@functools.cache  # a sweep changes rows in a few ways, and often; building such a query costs more than running it
def _make_update(
    table: sa.Table, changed: tuple[str, ...], present: tuple[str, ...], missing: tuple[str, ...]
) -> sa.Update:
    query = table.update().values({name: sa.bindparam(name) for name in changed})
    for name in present:
        query = query.where(table.c[name.removeprefix("its_")] == sa.bindparam(name))
    for name in missing:
        query = query.where(table.c[name].is_(None))
    return query


def find_sweep(connection: sa.Connection, sweep_id: str) -> SweepRow | None:
    """One sweep by its whole id, or by a unique beginning of it."""
    query = sa.select(sweeps).where(sweeps.c.sweep_id.startswith(sweep_id, autoescape=True)).limit(2)
    rows = connection.execute(query).all()
    exact = [row for row in rows if row.sweep_id == sweep_id]
    if exact or len(rows) == 1:
        return _sweep((exact or rows)[0])
    return None


def find_driver(connection: sa.Connection, sweep_id: str) -> tuple[str, str] | None:
    """Who drives a sweep, and what others wish of it (`stop`, or nothing)."""
    row = connection.execute(_FIND_DRIVER, {"sweep_id": sweep_id}).one_or_none()
    return None if row is None else (row.driver, row.wish)


_FIND_DRIVER = sa.select(sweeps.c.driver, sweeps.c.wish).where(sweeps.c.sweep_id == sa.bindparam("sweep_id"))


def list_sweeps(connection: sa.Connection, *, product: str | None = None) -> list[SweepRow]:
    """Sweeps, newest first."""
    query = sa.select(sweeps).order_by(sweeps.c.started_us.desc())
    if product is not None:
        query = query.where(sweeps.c.product == product)
    return [_sweep(row) for row in connection.execute(query)]


def list_trials(connection: sa.Connection, sweep_id: str) -> list[TrialRow]:
    """Trials in number order."""
    query = sa.select(trials).where(trials.c.sweep_id == sweep_id).order_by(trials.c.number)
    return [_row(TrialRow, row, decode=("params", "metrics")) for row in connection.execute(query)]


def list_attempts(connection: sa.Connection, sweep_id: str, *, number: int | None = None) -> list[AttemptRow]:
    """Attempts by trial and attempt number; of one trial with `number`."""
    query = sa.select(attempts).where(attempts.c.sweep_id == sweep_id)
    query = query.order_by(attempts.c.number, attempts.c.attempt)
    if number is not None:
        query = query.where(attempts.c.number == number)
    return [_row(AttemptRow, row) for row in connection.execute(query)]


def list_reports(connection: sa.Connection, sweep_id: str) -> list[ReportRow]:
    """Reports by trial and epoch."""
    query = sa.select(reports).where(reports.c.sweep_id == sweep_id).order_by(reports.c.number, reports.c.epoch)
    return [_row(ReportRow, row, decode=("metrics",)) for row in connection.execute(query)]


def list_group_leases(connection: sa.Connection, sweep_id: str) -> list[GroupLeaseRow]:
    """Leases of a sweep's groups, oldest first."""
    query = sa.select(group_leases).where(group_leases.c.sweep_id == sweep_id).order_by(group_leases.c.started_us)
    return [_row(GroupLeaseRow, row) for row in connection.execute(query)]


def _encode(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, sort_keys=True, allow_nan=False) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def _row(kind: Any, row: Any, *, decode: tuple[str, ...] = ()) -> Any:
    names = kind.__dataclass_fields__
    content = {name: getattr(row, name) for name in names}
    return kind(**{name: json.loads(value) if name in decode else value for name, value in content.items()})


def _sweep(row: Any) -> SweepRow:
    sweep: SweepRow = _row(SweepRow, row, decode=("spec", "inputs"))
    return sweep


def load_trial_seconds(connection: sa.Connection, product: str) -> tuple[float, ...]:
    """Run times of a product's finished trials, newest first, for forecasts."""
    query = (
        sa.select(trials.c.started_us, trials.c.finished_us)
        .join(sweeps, sweeps.c.sweep_id == trials.c.sweep_id)
        .where(sweeps.c.product == product, trials.c.state == COMPLETE, trials.c.finished_us.is_not(None))
        .order_by(trials.c.finished_us.desc())
        .limit(200)
    )
    return tuple((row.finished_us - row.started_us) / 1e6 for row in connection.execute(query))
