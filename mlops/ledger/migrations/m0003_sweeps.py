"""Sweeps, their trials, the attempts of each trial and the reports of each epoch."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create sweeps, trials, attempts and reports."""
    metadata = sa.MetaData()
    sa.Table(
        "sweeps",
        metadata,
        sa.Column("sweep_id", sa.Text, primary_key=True),
        sa.Column("product", sa.Text, nullable=False, index=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("inputs", sa.Text, nullable=False),
        sa.Column("driver", sa.Text, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
        sa.Column("finished_us", sa.BigInteger, nullable=True),
        sa.Column("winner", sa.Integer, nullable=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("mlflow_run_id", sa.Text, nullable=False),
        sa.Column("wish", sa.Text, nullable=False),
    )
    sa.Table(
        "trials",
        metadata,
        sa.Column("sweep_id", sa.Text, sa.ForeignKey("sweeps.sweep_id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("weights_file", sa.Text, nullable=False),
        sa.Column("weights_sha256", sa.Text, nullable=False),
        sa.Column("mlflow_run_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("finished_us", sa.BigInteger, nullable=True),
    )
    sa.Table(
        "attempts",
        metadata,
        sa.Column("sweep_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker_group", sa.Text, nullable=False),
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("busy_us", sa.BigInteger, nullable=False),
        sa.Column("data_wait_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["sweep_id", "number"], ["trials.sweep_id", "trials.number"]),
    )
    sa.Table(
        "reports",
        metadata,
        sa.Column("sweep_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["sweep_id", "number"], ["trials.sweep_id", "trials.number"]),
    )
    sa.Table(
        "group_leases",
        metadata,
        sa.Column("sweep_id", sa.Text, sa.ForeignKey("sweeps.sweep_id"), primary_key=True),
        sa.Column("lease_id", sa.Text, primary_key=True),
        sa.Column("worker_group", sa.Text, nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("accelerators", sa.Text, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=True),
    )
    metadata.create_all(connection)
