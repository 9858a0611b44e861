"""Tables of the queue: worker groups and the nodes they run on. Their frozen DDL is migrations 0020 and 0043."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

groups = sa.Table(
    "budget_groups",
    metadata,
    sa.Column("group_id", sa.Text, primary_key=True),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False, index=True),
    sa.Column("remaining_us", sa.BigInteger, nullable=False),
    sa.Column("submitted_us", sa.BigInteger, nullable=False),
    sa.Column("waiting_since_us", sa.BigInteger, nullable=False),
    sa.Column("waited_us", sa.BigInteger, nullable=False),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("checkpointed_us", sa.BigInteger, nullable=False),
    sa.Column("leaves_by_us", sa.BigInteger, nullable=False),
    sa.Column("placement", sa.Text, nullable=False),
    sa.Column("lease_id", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("evicted_by", sa.Text, nullable=False),
    sa.Column("yields_to", sa.Text, nullable=False),
    sa.Column("yields_from_us", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked_us", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reason_code", sa.Text, nullable=False, server_default=""),
)
nodes = sa.Table(
    "cluster_nodes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("units", sa.BigInteger, nullable=False),
    sa.Column("is_draining", sa.Boolean, nullable=False),
)
