"""The lease book: `reserve` pays over every ancestor budget before a group starts, `renew` before each window, `settle` refunds.

Every operation is one transaction and has an idempotency key; every later one carries the lease's fencing token. What was
paid is never less than what workers can burn: they stop by their own clock at the end of the window, and window, grace and
checkpoint time are paid ahead. Leaves to others: who runs next (`decide`), delivery of warnings (`outbox`).
"""

from __future__ import annotations

from mlops.budgets.lease_types import Lease, LeaseRequest, Purpose, Settlement, SpendLimit
from mlops.clock import Clock
from mlops.errors import Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Ledger

__all__ = ["Lease", "LeaseBook", "LeaseRequest", "Purpose", "Settlement", "SpendLimit"]


class LeaseBook:
    """Leases on the real ledger. `mlops.budgets.opening.open_lease_book(places, ledger, clock, ids)` applies the budget files first."""

    def __init__(self, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        """Pay for window + grace + checkpoint over every ancestor scope, all or nothing."""
        raise NotImplementedError

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        """Charge what was used so far and pay for another window from now."""
        raise NotImplementedError

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        """Charge the time used and refund the rest; an unknown end (None) is charged to the expiry."""
        raise NotImplementedError

    def close_expired(self, now_us: int | None = None) -> tuple[Settlement, ...]:
        """Charge leases whose holder vanished, to their expiry."""
        raise NotImplementedError

    def find(self, lease_id: str) -> Lease | None:
        """One lease, live or ended."""
        raise NotImplementedError

    def list_live(self) -> tuple[Lease, ...]:
        """Every live lease, oldest first."""
        raise NotImplementedError
