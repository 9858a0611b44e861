"""The shelf of warm groups: what one sweep no longer needs waits here, paid for a short time, for the next one.

A group is put down and taken in one ledger transaction each, so that one driver at most has it; nobody taking it, its
workers end by their own clock when the paid time is over, and its lease expires with them.
Leaves to others: keeping and adopting the workers (the crew), when to put down and take (mlops/training/sweep_driver).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mlops.clock import SECOND_US
from mlops.ledger.connection import Ledger, Transaction
from mlops.training.leasing import Leases, settle_group
from mlops.training.sql_trials import group_leases, warm_groups

SHORTEST_SECONDS = 2.0
"""A group with less time left is not taken: its workers could end on the way."""


@dataclass(frozen=True)
class WarmGroup:
    """A group on the shelf."""

    worker_group: str
    likeness: str
    """Digest of all that groups which can stand in for each other have in common."""
    sweep_id: str
    """Who put it down, and pays until it is taken."""
    lease_id: str
    fencing_token: int
    until_us: int
    """Ledger time at which its workers end."""


class WarmShelf:
    """Warm groups of one ledger."""

    def __init__(self, ledger: Ledger, leases: Leases) -> None:
        self._ledger, self._leases = ledger, leases

    def put(self, group: WarmGroup) -> None:
        """A group waits; its lease ends at `until_us` unless it is taken before."""
        with self._ledger.write() as transaction:
            values = {name: getattr(group, name) for name in group.__dataclass_fields__}
            transaction.connection.execute(warm_groups.insert().values(**values))
            _end_lease(transaction, group, ended_us=group.until_us)
            transaction.append("group.kept", group.worker_group, {"until_us": group.until_us, "sweep": group.sweep_id})

    def take(self, likeness: str) -> WarmGroup | None:
        """The fitting group with the most time left, off the shelf, its old lease settled; None when there is none."""
        with self._ledger.write() as transaction:
            connection, now_us = transaction.connection, transaction.now_us
            connection.execute(warm_groups.delete().where(warm_groups.c.until_us <= now_us))
            fitting = sa.select(warm_groups).where(warm_groups.c.likeness == likeness)
            fitting = fitting.where(warm_groups.c.until_us > now_us + round(SHORTEST_SECONDS * SECOND_US))
            row = connection.execute(fitting.order_by(warm_groups.c.until_us.desc()).limit(1)).first()
            if row is None:
                return None
            group = WarmGroup(**{name: getattr(row, name) for name in WarmGroup.__dataclass_fields__})
            connection.execute(warm_groups.delete().where(warm_groups.c.worker_group == group.worker_group))
            _end_lease(transaction, group, ended_us=now_us)
            transaction.append("group.taken", group.worker_group, {"sweep": group.sweep_id})
        settle_group(self._leases, group.lease_id, fencing_token=group.fencing_token, ended_us=now_us)
        return group


def _end_lease(transaction: Transaction, group: WarmGroup, *, ended_us: int) -> None:
    where = (group_leases.c.sweep_id == group.sweep_id) & (group_leases.c.lease_id == group.lease_id)
    transaction.connection.execute(group_leases.update().where(where).values(ended_us=ended_us))
