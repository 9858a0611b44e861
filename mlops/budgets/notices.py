"""Notices to people that no budget caused, through the same outbox as warnings: at least once, with visible retries.

Leaves to others: delivering (outbox.py) and what is worth telling (each room).
"""

from __future__ import annotations

from mlops.budgets.sql_budgets import warnings
from mlops.ledger.connection import Transaction


def add_notice(transaction: Transaction, *, scope: str, action: str, text: str) -> None:
    """Put a notice into the outbox, in the transaction of what it tells about.

    Args:
        transaction: Where it happens.
        scope: What it is about, such as `erasure:income`.
        action: What happened, kebab-case.
        text: For people; no ids of persons.
    """
    transaction.connection.execute(
        warnings.insert().values(
            scope=scope,
            period_start_us=transaction.now_us,
            basis_points=transaction.next_number,  # tells notices of one moment apart
            action=action,
            text=text,
            crossed_us=transaction.now_us,
            delivered_us=None,
            attempts=0,
            next_attempt_us=transaction.now_us,
            last_error="",
        )
    )
    transaction.append("notice.added", scope, {"action": action, "text": text})
