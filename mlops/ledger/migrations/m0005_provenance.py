"""An index that finds the newest step of each kind of a product without reading all steps."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Index steps by product, kind and time."""
    steps = sa.Table(
        "steps",
        sa.MetaData(),
        sa.Column("product", sa.Text),
        sa.Column("kind", sa.Text),
        sa.Column("finished_us", sa.BigInteger),
    )
    sa.Index("steps_by_product", steps.c.product, steps.c.kind, steps.c.finished_us).create(connection)
