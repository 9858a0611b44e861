"""Looks at test sets: which candidate was judged on which rows, so that a test set is not worn out unnoticed."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create gate_looks."""
    metadata = sa.MetaData()
    sa.Table(
        "gate_looks",
        metadata,
        sa.Column("test_digest", sa.Text, primary_key=True),
        sa.Column("candidate", sa.Text, primary_key=True),
        sa.Column("product", sa.Text, nullable=False),
        sa.Column("looked_us", sa.BigInteger, nullable=False),
    )
    metadata.create_all(connection)
