"""Leases by turn: what a driver asks for waits in the queue until `decide` starts it, and may be called back.

The same calls as the lease book's, for whoever runs worker groups. A group that waits is answered with a refusal whose
codes are all in `PASSING`: ask again with the same key, each second. A group that must make room finds an order.
Leaves to others: the rule (`decide`), the queue's rows (`admission`), money (`leases`), workers (mlops/training).
"""

from __future__ import annotations

from collections.abc import Iterable

from mlops.budgets.admission import LIVE_SETTINGS, Admission, GroupRequest, GroupStatus
from mlops.budgets.lease_types import Lease, LeaseRequest, LeaveOrder, Settlement
from mlops.budgets.leases import LeaseBook
from mlops.budgets.prediction import UNKNOWN_US
from mlops.budgets.state import Node, Settings
from mlops.clock import SECOND_US
from mlops.errors import Reason, Refusal
from mlops.ledger.connection import Ledger

PASSING = frozenset({"waiting", "units-busy", "reserved-ahead", "quota-exceeded"})
"""Codes of grounds that pass when others end: waiting makes sense. Money and never-fits are not among them."""

DROPPED = "dropped"
"""Code for a key whose group left the queue, for instance because its driver did not ask for a minute."""


class LeaseQueue:
    """The queue of one ledger, as a driver uses it."""

    def __init__(self, ledger: Ledger, leases: LeaseBook, *, settings: Settings = LIVE_SETTINGS) -> None:
        self._leases = leases
        self._admission = Admission(ledger, leases, settings=settings)

    def report_nodes(self, found: Iterable[Node], *, kind: str) -> None:
        """The machines with accelerators of a kind, as they are now."""
        self._admission.report_nodes(found, kind=kind)

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        """The lease, once it is this group's turn; until then, and when it never can be, why not."""
        status = self._admission.submit(
            GroupRequest(
                group_id=request.key,
                budget=request.budget,
                accelerators=request.accelerators,
                holder=request.holder,
                expected_seconds=request.expected_seconds or UNKNOWN_US / SECOND_US,
                window_seconds=request.window_seconds,
                grace_seconds=request.grace_seconds,
                checkpoint_seconds=request.checkpoint_seconds,
                priority=request.priority,
                sweep_id=request.sweep_id,
                limits=request.limits,
                spender=request.spender,
                claim=request.claim,
                purpose=request.purpose,
            )
        )
        if status.status == "waiting":
            status = self._admission.poll(request.key)
        lease = self._admission.find_lease(request.key) if status.status == "running" else None
        return lease if lease is not None else _explain(status)

    def reserve_own(self, request: LeaseRequest) -> Lease | Refusal:
        """The lease of machines that only the holder can use, such as a cluster of its own: no turn, only money."""
        return self._leases.reserve(request)

    def withdraw(self, key: str) -> None:
        """Nobody needs what was asked for under this key any more; nothing happens when it is not waiting."""
        self._admission.cancel(key)

    def find_order(self, lease_id: str) -> LeaveOrder | None:
        """Whether the group must checkpoint and leave, why, and by when."""
        status = self._admission.find_holder(lease_id)
        if status is None or status.status != "leaving":
            return None
        return LeaveOrder(Reason("preempted", status.reason), status.leaves_by_us)

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        """As `LeaseBook.renew`."""
        return self._leases.renew(lease_id, fencing_token=fencing_token, window_seconds=window_seconds, key=key)

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        """As `LeaseBook.settle`; the group leaves the cluster, and what was called back waits again under its key."""
        status = self._admission.find_holder(lease_id)
        if status is not None:
            is_done = status.status != "leaving"
            self._admission.leave(status.group_id, fencing_token=fencing_token, is_done=is_done, ended_us=ended_us)
        return self._leases.settle(lease_id, fencing_token=fencing_token, ended_us=ended_us, key=key)


def _explain(status: GroupStatus) -> Refusal:
    if status.status == "ended":
        return Refusal((Reason(DROPPED, f"{status.group_id} left the queue ({status.reason}); ask under a new key"),))
    return Refusal((Reason(status.reason_code or "waiting", status.reason or "waits for its turn"),))
