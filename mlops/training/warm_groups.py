"""The shelf of warm groups: what one sweep no longer needs waits here, paid for a short time, for the next one.

A group is put down and taken in one ledger transaction each, so that one driver at most has it; nobody taking it, its
workers end by their own clock when the paid time is over, and its lease expires with them.
Leaves to others: keeping and adopting the workers (the crew), when to put down and take (mlops/training/sweep_driver).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        self._unreachable: set[str] = set()
        """Groups in a cluster that this driver is not connected to."""

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
            group = None if row is None else _from_row(row)
            if group is None or not _remove(transaction, group, kind="group.taken"):
                return None
        settle_group(self._leases, group.lease_id, fencing_token=group.fencing_token, ended_us=now_us)
        return group

    def end_oldest(self, end: Callable[[str], bool]) -> bool:
        """End the group that has waited longest, whatever it fits, for others need its place; False when none is.

        Args:
            end: Ends the workers of a group by name; False when it cannot reach them: they stay, and are paid.
        """
        with self._ledger.write() as transaction:
            transaction.connection.execute(warm_groups.delete().where(warm_groups.c.until_us <= transaction.now_us))
            waiting = sa.select(warm_groups).order_by(warm_groups.c.until_us)
            rows = transaction.connection.execute(waiting).all()
        for group in [_from_row(row) for row in rows if row.worker_group not in self._unreachable]:
            with self._ledger.write() as transaction:
                ended_us, is_ours = transaction.now_us, _remove(transaction, group, kind="group.ended")
            if not is_ours:
                continue  # taken by another driver meanwhile
            if end(group.worker_group):
                settle_group(self._leases, group.lease_id, fencing_token=group.fencing_token, ended_us=ended_us)
                return True
            self._unreachable.add(group.worker_group)
            self.put(group)
        return False


def _from_row(row: sa.Row[Any]) -> WarmGroup:
    return WarmGroup(**{name: getattr(row, name) for name in WarmGroup.__dataclass_fields__})


def _remove(transaction: Transaction, group: WarmGroup, *, kind: str) -> bool:
    """Off the shelf, its lease ended now; False when it was not there any more."""
    where = warm_groups.c.worker_group == group.worker_group
    if not transaction.connection.execute(warm_groups.delete().where(where)).rowcount:
        return False
    _end_lease(transaction, group, ended_us=transaction.now_us)
    transaction.append(kind, group.worker_group, {"sweep": group.sweep_id})
    return True


def _end_lease(transaction: Transaction, group: WarmGroup, *, ended_us: int) -> None:
    where = (group_leases.c.sweep_id == group.sweep_id) & (group_leases.c.lease_id == group.lease_id)
    transaction.connection.execute(group_leases.update().where(where).values(ended_us=ended_us))
