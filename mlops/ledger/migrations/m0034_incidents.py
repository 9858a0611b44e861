"""Incidents: what went wrong in production, the case that was made of it, and how it was closed."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create incidents."""
    metadata = sa.MetaData()
    sa.Table(
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
    metadata.create_all(connection)
