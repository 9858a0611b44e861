"""Outlasting a ledger that cannot be reached for a while: what was under way is done again from what the ledger has.

Whether a change was kept when its connection broke is not known, so nothing in memory is trusted: the attempt begins
anew, as a new process would after a crash. Leaves to others: what an attempt is (mlops/training/sweep).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from mlops.clock import SECOND_US, Clock
from mlops.errors import LedgerUnreachable
from mlops.ledger.connection import Ledger

PATIENCE_SECONDS = 600.0
"""A ledger that does not answer for so long ends the sweep; it can be resumed."""
ASK_SECONDS = 2.0

T = TypeVar("T")


def outlast(attempt: Callable[[bool], T], *, ledger: Ledger, clock: Clock, say: Callable[[str], None]) -> T:
    """The result of `attempt`, begun again whenever the ledger was lost and is there again.

    Args:
        attempt: Goes on from what the ledger has; told whether this process has begun it before.
        ledger: What may be lost.
        clock: Waits.
        say: Hears of the loss.

    Raises:
        LedgerUnreachable: It did not come back in time.
    """
    is_again = False
    while True:
        try:
            return attempt(is_again)
        except LedgerUnreachable as error:
            say(f"the ledger is lost, and waited for: {error.message}")
            _await_ledger(ledger, clock=clock)
            say("the ledger is back: going on from what it has")
            is_again = True


def _await_ledger(ledger: Ledger, *, clock: Clock) -> None:
    limit_us = clock.monotonic_us() + round(PATIENCE_SECONDS * SECOND_US)
    while True:
        try:
            with ledger.write() as transaction:
                transaction.connection.execute(sa.select(1))
            return
        except LedgerUnreachable:
            if clock.monotonic_us() > limit_us:
                raise
        clock.sleep(ASK_SECONDS)
