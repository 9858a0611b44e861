"""What is asked of the lease book and what it answers: plain frozen values.

Leaves to others: granting (`leases`), the rows (`sql_budgets`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlops.budgets.money import cost_of, to_milli
from mlops.clock import SECOND_US
from mlops.errors import Reason
from mlops.units import Accelerators

Purpose = Literal["training", "serving"]


@dataclass(frozen=True)
class SpendLimit:
    """An own limit of a sweep or a trial, below its budget."""

    scope: str
    """`sweep:<id>` or `trial:<id>`; never `budget:…`."""
    cap_micro_usd: int


@dataclass(frozen=True)
class LeaseRequest:
    """Asks for accelerators for a window of time, to be paid before it starts."""

    key: str
    """Idempotency key: the same request with the same key is granted once."""
    budget: str
    accelerators: Accelerators
    window_seconds: float
    """How long the group may work before it must have renewed."""
    grace_seconds: float
    """How long after the window the workers may take to notice and stop."""
    checkpoint_seconds: float
    """How long the last checkpoint may take."""
    holder: str
    """Who renews: a driver, `host:pid` or a deployment."""
    sweep_id: str = ""
    limits: tuple[SpendLimit, ...] = ()
    spender: str = ""
    """The person who spends; checked against the budget's `spenders`."""
    claim: str = ""
    """Signed claim of the spender (`claims.sign_claim`), where the budget asks for one."""
    purpose: Purpose = "training"
    group_id: str = ""
    """The queued group this lease is for; empty for a lease that bypasses the queue."""
    expected_seconds: float = field(default=0.0, repr=False, compare=False)
    """Predicted run time, for the queue; 0: not known. A better guess is the same request."""
    priority: int | None = field(default=None, repr=False, compare=False)
    """In the queue; None: the budget's."""

    @property
    def prepaid_us(self) -> int:
        """Window, grace and checkpoint time together."""
        return round((self.window_seconds + self.grace_seconds + self.checkpoint_seconds) * SECOND_US)

    @property
    def milli(self) -> int:
        """Thousandths of an accelerator."""
        return to_milli(self.accelerators.count)


@dataclass(frozen=True)
class Lease:
    """A prepaid, time-limited right to accelerators."""

    lease_id: str
    fencing_token: int
    """Grows with every lease of the ledger; a write that carries an older one is refused."""
    budget: str
    accelerators: Accelerators
    holder: str
    sweep_id: str
    purpose: Purpose
    started_us: int
    window_ends_us: int
    """Workers begin to stop here unless the lease was renewed."""
    expires_us: int
    """Everything up to here is paid; an unknown end is charged to here."""
    price_micro_usd_per_hour: int
    """Of the whole group, fixed when the lease was granted."""
    reserved_micro_usd: int
    """Paid ahead and not yet used."""
    charged_micro_usd: int
    """Used up to the last renewal."""
    is_live: bool = True

    @property
    def price_micro_usd_per_second(self) -> int:
        """Of the whole group, rounded up; for people (charges use the price per hour)."""
        return cost_of(self.price_micro_usd_per_hour, duration_us=SECOND_US)


@dataclass(frozen=True)
class LeaveOrder:
    """A running group must commit a checkpoint and leave: others need its place more."""

    reason: Reason
    leaves_by_us: int
    """Time of the ledger at which its units are wanted; it is stopped then."""


@dataclass(frozen=True)
class Settlement:
    """How a lease ended."""

    lease_id: str
    ended_us: int
    charged_micro_usd: int
    """Over the whole life of the lease."""
    refunded_micro_usd: int
    """Of the last window."""
    cause: str
    """`settled` by its holder, or `expired`: charged to the expiry."""
