"""Budgets, accounts, leases and warnings."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create what the budget room needs first."""
    metadata = sa.MetaData()
    sa.Table(
        "budgets",
        metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
    )
    sa.Table(
        "budget_digests",
        metadata,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, primary_key=True),
    )
    sa.Table(
        "accounts",
        metadata,
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("period_start_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("cap_micro_usd", sa.BigInteger, nullable=True),
        sa.Column("charged_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("reserved_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("overdraft_micro_usd", sa.BigInteger, nullable=False),
    )
    sa.Table(
        "leases",
        metadata,
        sa.Column("lease_id", sa.Text, primary_key=True),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("budget", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("milli", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("sweep_id", sa.Text, nullable=False, index=True),
        sa.Column("group_id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("is_live", sa.Boolean, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("segment_started_us", sa.BigInteger, nullable=False),
        sa.Column("window_ends_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("tail_us", sa.BigInteger, nullable=False),
        sa.Column("price_micro_usd_per_hour", sa.BigInteger, nullable=False),
        sa.Column("reserved_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("charged_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("paid_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("refunded_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=True),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Index("leases_by_life", "is_live", "expires_us"),
    )
    sa.Table(
        "lease_operations",
        metadata,
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
    )
    sa.Table(
        "budget_warnings",
        metadata,
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("period_start_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("basis_points", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("crossed_us", sa.BigInteger, nullable=False),
        sa.Column("delivered_us", sa.BigInteger, nullable=True, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_us", sa.BigInteger, nullable=False),
        sa.Column("last_error", sa.Text, nullable=False),
    )
    metadata.create_all(connection)
