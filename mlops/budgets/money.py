"""Prices and charges in whole micro-USD; every rounding is upward, so that a charge never falls short of the time used.

Leaves to others: which price holds when (`tree.RateCard`) and who pays (`leases`).
"""

from __future__ import annotations

HOUR_US = 3_600_000_000
MILLI = 1_000
"""Accelerators are counted in thousandths: `0.5xcpu` is 500."""


def to_milli(count: float) -> int:
    """Accelerators to thousandths of one."""
    return round(count * MILLI)


def price_per_hour(rate_micro_usd: int, *, milli: int) -> int:
    """Micro-USD per hour of `milli` thousandths of an accelerator, rounded up."""
    return -(-rate_micro_usd * milli // MILLI)


def cost_of(price_micro_usd_per_hour: int, *, duration_us: int) -> int:
    """Micro-USD for `duration_us` at a price per hour, rounded up; nothing for a negative duration."""
    return -(-price_micro_usd_per_hour * max(duration_us, 0) // HOUR_US)
