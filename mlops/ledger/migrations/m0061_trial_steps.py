"""Running trials say how far they are inside an epoch."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Add epoch and step to the attempts."""
    for name in ("at_epoch", "at_step"):
        connection.execute(sa.text(f"ALTER TABLE attempts ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0"))
