"""Worker groups that wait, warm and paid, for the next sweep."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create the shelf."""
    metadata = sa.MetaData()
    sa.Table(
        "warm_groups",
        metadata,
        sa.Column("worker_group", sa.Text, primary_key=True),
        sa.Column("likeness", sa.Text, nullable=False, index=True),
        sa.Column("sweep_id", sa.Text, nullable=False),
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
    )
    metadata.create_all(connection)
