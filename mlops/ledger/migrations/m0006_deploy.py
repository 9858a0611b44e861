"""Approvals, desired states, deployments and barred digests."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create approvals, desired_states, deployments and barred_digests."""
    metadata = sa.MetaData()
    sa.Table(
        "approvals",
        metadata,
        sa.Column("approval_id", sa.Text, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("issued_us", sa.BigInteger, nullable=False),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.Index("approvals_by_product", "product", "environment"),
    )
    sa.Table(
        "desired_states",
        metadata,
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("environment", sa.Text, nullable=False, index=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("step_id", sa.Text, nullable=True),
        sa.Column("commit_hash", sa.Text, nullable=True),
    )
    sa.Table(
        "deployments",
        metadata,
        sa.Column("deployment_id", sa.Text, primary_key=True),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("share", sa.Integer, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Index("deployments_by_environment", "environment", "product"),
    )
    sa.Table(
        "barred_digests",
        metadata,
        sa.Column("environment", sa.Text, primary_key=True),
        sa.Column("image", sa.Text, primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
    )
    metadata.create_all(connection)
