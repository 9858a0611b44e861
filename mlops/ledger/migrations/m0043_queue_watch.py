"""Waiting groups say when their driver last asked, and why they wait as a code."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Add both to the queue."""
    connection.execute(sa.text("ALTER TABLE budget_groups ADD COLUMN asked_us BIGINT NOT NULL DEFAULT 0"))
    connection.execute(sa.text("ALTER TABLE budget_groups ADD COLUMN reason_code TEXT NOT NULL DEFAULT ''"))
