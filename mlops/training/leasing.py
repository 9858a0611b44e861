"""What the driver needs of the lease book, and the life of one group's lease: reserve, renew at half time, settle.

Leaves to others: money and admission (mlops/budgets), when a group is needed (mlops/training/sweep_driver).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mlops.budgets.lease_types import Lease, LeaseRequest, LeaveOrder, Settlement, SpendLimit
from mlops.budgets.state import Node
from mlops.clock import SECOND_US, Clock
from mlops.errors import Refusal
from mlops.training.spec import SweepSpec
from mlops.units import Accelerators


class Leases(Protocol):
    """The lease book (`mlops.budgets.leases.LeaseBook` has it)."""

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        """Pay ahead, or say why not."""
        ...

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        """Pay another window."""
        ...

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        """Charge what was used, refund the rest."""
        ...


class GroupLeases(Leases, Protocol):
    """Leases by turn (`mlops.budgets.lease_queue.LeaseQueue` has it)."""

    def reserve_own(self, request: LeaseRequest) -> Lease | Refusal:
        """Pay ahead for machines that only the holder can use: they do not wait for a turn."""
        ...

    def report_nodes(self, found: Iterable[Node], *, kind: str) -> None:
        """The machines with accelerators of a kind, as they are now."""
        ...

    def withdraw(self, key: str) -> None:
        """What waits under this key is not needed any more."""
        ...

    def find_order(self, lease_id: str) -> LeaveOrder | None:
        """Whether others need the place of a group more."""
        ...


@dataclass
class GroupLease:
    """The lease of one worker group."""

    lease: Lease
    until_us: int
    """End of the paid window on this process's monotonic clock, counted from when it was asked for."""
    renewals: int = 0
    refusal: Refusal | None = None
    """Why the last renewal was refused; the group must yield before `until_us`."""
    order: LeaveOrder | None = None
    """Who needs its place; the group must yield, and waits for its turn again."""

    @property
    def accelerators(self) -> Accelerators:
        """Of the whole group."""
        return self.lease.accelerators


def own_limits(spec: SweepSpec, *, sweep_id: str) -> tuple[SpendLimit, ...]:
    """The limit that the sweep sets itself below its budget, if any."""
    spend = spec.stop.spend
    return () if spend is None else (SpendLimit(scope=f"sweep:{sweep_id}", cap_micro_usd=spend),)


def reserve_group(
    leases: Leases,
    *,
    spec: SweepSpec,
    workers: int,
    sweep_id: str,
    key: str,
    holder: str,
    spender: str,
    expected_seconds: float,
    clock: Clock,
) -> GroupLease | Refusal:
    """A lease for one more group of the sweep, which is expected to run for so long."""
    asked_us = clock.monotonic_us()
    limits = own_limits(spec, sweep_id=sweep_id)
    answer = leases.reserve(
        LeaseRequest(
            key=key,
            budget=spec.budget,
            accelerators=Accelerators(spec.accelerators.kind, spec.accelerators.count * workers),
            window_seconds=spec.lease_window,
            grace_seconds=spec.grace,
            checkpoint_seconds=spec.checkpoint_time,
            holder=holder,
            sweep_id=sweep_id,
            limits=limits,
            spender=spender,
            expected_seconds=expected_seconds,
            priority=spec.priority,
        )
    )
    if isinstance(answer, Refusal):
        return answer
    return GroupLease(lease=answer, until_us=asked_us + round(spec.lease_window * SECOND_US))


def renew_if_due(leases: Leases, group: GroupLease, *, spec: SweepSpec, clock: Clock) -> bool:
    """Renew when less than half of the window is left; whether the deadline moved."""
    now_us = clock.monotonic_us()
    if group.refusal is not None or group.until_us - now_us > spec.lease_window * SECOND_US / 2:
        return False
    answer = leases.renew(
        group.lease.lease_id,
        fencing_token=group.lease.fencing_token,
        window_seconds=spec.lease_window,
        key=f"{group.lease.lease_id}:renew:{group.renewals + 1}",
    )
    if isinstance(answer, Refusal):
        group.refusal = answer
        return False
    group.lease, group.until_us = answer, now_us + round(spec.lease_window * SECOND_US)
    group.renewals += 1
    return True


def shorten_group(leases: Leases, group: GroupLease, *, seconds: float, clock: Clock) -> int | None:
    """Pay for so long from now and no longer; until when on this process's clock, or None when it is refused."""
    now_us = clock.monotonic_us()
    answer = leases.renew(
        group.lease.lease_id,
        fencing_token=group.lease.fencing_token,
        window_seconds=seconds,
        key=f"{group.lease.lease_id}:keep",
    )
    if isinstance(answer, Refusal):
        return None
    group.lease, group.until_us = answer, now_us + round(seconds * SECOND_US)
    return group.until_us


def settle_group(leases: Leases, lease_id: str, *, fencing_token: int, ended_us: int | None) -> None:
    """End a lease; one that has expired meanwhile was charged to its expiry already, which is no fault."""
    leases.settle(lease_id, fencing_token=fencing_token, ended_us=ended_us, key=f"{lease_id}:settle")
