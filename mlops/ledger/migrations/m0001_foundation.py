"""Events, and the record of steps with their edges."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create events, steps and edges."""
    metadata = sa.MetaData()
    sa.Table(
        "events",
        metadata,
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False, index=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
    )
    sa.Table(
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
        sa.Index("steps_by_memo_key", "kind", "product", "memo_key"),
    )
    sa.Table(
        "edges",
        metadata,
        sa.Column("step_id", sa.Text, sa.ForeignKey("steps.step_id"), primary_key=True),
        sa.Column("direction", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False, index=True),
    )
    metadata.create_all(connection)
