"""Checks as calls on Ray actors, on machines that are paid for by a lease; what `machines` of a policy asks for.

Leaves to others: the actors (mlops/training/ray_calls), the lease book (mlops/budgets), which check runs when
(check_crew.py).
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlops.budgets.lease_types import Lease, LeaseRequest
from mlops.clock import SECOND_US, Clock
from mlops.errors import Refusal
from mlops.evaluation.check_crew import Heard, crashed, hear_one
from mlops.evaluation.gate import GateRequest, hear_rule, open_hearing
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import AnyRule, Machines
from mlops.evaluation.signed_answers import refuse_all
from mlops.ids import Ids
from mlops.places import Places
from mlops.training.leasing import Leases
from mlops.training.ray_cluster import connected
from mlops.units import Accelerators

if TYPE_CHECKING:
    from mlops.training.ray_calls import RayCalls

GRACE_SECONDS = 5.0


class LeasedCrew:
    """Implements `CheckCrew`: renews its lease at half time, settles it when closed."""

    def __init__(self, calls: RayCalls, *, lease: PaidTime, resources: ExitStack) -> None:
        self._calls = calls
        self._lease = lease
        self._resources = resources

    def count_free(self) -> int:
        """See `CheckCrew`."""
        return self._calls.count_free()

    def begin(self, rule: AnyRule) -> None:
        """See `CheckCrew`."""
        self._calls.begin(rule.name, rule)

    def next_ended(self, *, timeout_seconds: float) -> list[tuple[str, Heard]]:
        """See `CheckCrew`."""
        return [
            (name, answer if isinstance(answer, Heard) else crashed(answer.why))
            for name, answer in self._calls.next_ended(timeout_seconds=timeout_seconds)
        ]

    def stop(self, name: str) -> None:
        """See `CheckCrew`."""
        self._calls.stop(name)

    def look_at_lease(self) -> Refusal | None:
        """See `CheckCrew`."""
        answer = self._lease.renew_if_due()
        if isinstance(answer, int):
            self._calls.extend(answer)
        return answer if isinstance(answer, Refusal) else None

    def close(self) -> None:
        """See `CheckCrew`."""
        self._resources.close()


class PaidTime:
    """The lease of a gate's workers."""

    def __init__(self, leases: Leases, lease: Lease, *, machines: Machines, asked_us: int, clock: Clock) -> None:
        self._leases = leases
        self._lease = lease
        self._window_us = round(machines.window * SECOND_US)
        self._clock = clock
        self._renewals = 0
        self.until_us = asked_us + self._window_us
        """End of the paid window on the driver's monotonic clock, counted from when it was asked for."""
        self.ended_us: int | None = None
        """When the workers were known to be dead, on the wall clock."""

    def renew_if_due(self) -> int | Refusal | None:
        """The new end when half of the window was over; a refusal when no more can be paid."""
        now_us = self._clock.monotonic_us()
        if self.until_us - now_us > self._window_us / 2:
            return None
        self._renewals += 1
        answer = self._leases.renew(
            self._lease.lease_id,
            fencing_token=self._lease.fencing_token,
            window_seconds=self._window_us / SECOND_US,
            key=f"{self._lease.lease_id}:renew:{self._renewals}",
        )
        if isinstance(answer, Refusal):
            return answer
        self._lease, self.until_us = answer, now_us + self._window_us
        return self.until_us

    def settle(self) -> None:
        """Pay for what was used and take back the rest; all of it is paid when nobody knows the end."""
        lease_id, token = self._lease.lease_id, self._lease.fencing_token
        self._leases.settle(lease_id, fencing_token=token, ended_us=self.ended_us, key=f"{lease_id}:settle")


def reserve_time(
    leases: Leases, machines: Machines, *, budget: str, clock: Clock, ids: Ids, spender: str
) -> PaidTime | Refusal:
    """A lease for the workers of one gate."""
    asked_us = clock.monotonic_us()
    size = machines.accelerators
    answer = leases.reserve(
        LeaseRequest(
            key=ids.new("gate"),
            budget=budget,
            accelerators=Accelerators(size.kind, size.count * machines.workers),
            window_seconds=machines.window,
            grace_seconds=GRACE_SECONDS,
            checkpoint_seconds=0.0,
            holder=f"{socket.gethostname()}:{os.getpid()}",
            spender=spender,
        )
    )
    if isinstance(answer, Refusal):
        return answer
    return PaidTime(leases, answer, machines=machines, asked_us=asked_us, clock=clock)


def open_leased_crew(
    request: GateRequest,
    *,
    machines: Machines,
    budget: str,
    places: Places,
    leases: Leases,
    ids: Ids,
    spender: str,
) -> LeasedCrew | Refusal:
    """Pay, connect to Ray and start the workers.

    Returns:
        The crew, or why the budget pays nothing; the caller closes it.

    Raises:
        EnvironmentFault: Ray cannot be reached.
    """
    with ExitStack() as stack:
        stack.enter_context(connected(places))
        from mlops.training.ray_calls import CallSetup, RayCalls  # loads Ray, which must see the environment set above

        lease = reserve_time(leases, machines, budget=budget, clock=request.clock, ids=ids, spender=spender)
        if isinstance(lease, Refusal):
            return lease
        stack.callback(lease.settle)
        setup = CallSetup(
            open_state=partial(_open, _portable(request), request.clock.now_us()),
            call=_hear,
            keys_folder=str(places.keys_folder),
            cpus=machines.accelerators.count,
        )
        calls = RayCalls(setup, size=machines.workers, until_us=lease.until_us)
        stack.callback(partial(_close, calls, lease, clock=request.clock))
        return LeasedCrew(calls, lease=lease, resources=stack.pop_all())
    raise AssertionError("the block above returns")


def _close(calls: RayCalls, lease: PaidTime, *, clock: Clock) -> None:
    if calls.close():
        lease.ended_us = clock.now_us()


def _portable(request: GateRequest) -> GateRequest:
    """Without what only the driver needs."""
    return replace(
        request, waivers=(), statements=(), verify_signature=refuse_all, on_finished=_say_nothing, cache_folder=None
    )


def _say_nothing(name: str, seconds: float) -> None:
    """Progress is shown by the driver."""


def _open(request: GateRequest, now_us: int) -> Hearing:
    return replace(open_hearing(request), now_us=now_us)


def _hear(rule: Any, hearing: Hearing) -> Heard:
    return hear_one(rule, partial(hear_rule, hearing=hearing))
