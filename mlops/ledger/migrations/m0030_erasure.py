"""Erasure: requests, submissions, batches, retrains and certificates."""

from __future__ import annotations

import sqlalchemy as sa


def upgrade(connection: sa.Connection) -> None:
    """Create the five tables of mlops/erasure."""
    metadata = sa.MetaData()
    sa.Table(
        "erasure_requests",
        metadata,
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("received_us", sa.BigInteger, nullable=False),
        sa.Column("deadline_us", sa.BigInteger, nullable=False),
        sa.Column("fenced_us", sa.BigInteger, nullable=True),
        sa.Column("ended_us", sa.BigInteger, nullable=True),
        sa.Column("batch_id", sa.Text, nullable=True, index=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Index("erasure_requests_by_subject", "dataset", "subject"),
        sa.Index("erasure_requests_by_state", "dataset", "state"),
    )
    sa.Table(
        "erasure_submissions",
        metadata,
        sa.Column("receipt_id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False, index=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("nonce", sa.Text, nullable=False),
        sa.Column("received_us", sa.BigInteger, nullable=False),
        sa.Index("erasure_submissions_once", "tenant", "nonce", unique=True),
    )
    sa.Table(
        "erasure_batches",
        metadata,
        sa.Column("batch_id", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False, index=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened_us", sa.BigInteger, nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
        sa.Column("forced", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("runner", sa.Text, nullable=False),
        sa.Column("fencing_token", sa.BigInteger, nullable=False),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
    )
    sa.Table(
        "erasure_retrains",
        metadata,
        sa.Column("batch_id", sa.Text, primary_key=True),
        sa.Column("product", sa.Text, primary_key=True),
        sa.Column("dataset", sa.Text, nullable=False, index=True),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("forced", sa.Text, nullable=False),
        sa.Column("ended_us", sa.BigInteger, nullable=True),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=True),
    )
    sa.Table(
        "erasure_certificates",
        metadata,
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("batch_id", sa.Text, nullable=False, unique=True),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("envelope", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
    )
    metadata.create_all(connection)
