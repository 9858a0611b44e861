"""What a sweep has cost until now, and what its budgets have left for it.

Leaves to others: what it will still cost (mlops/budgets/forecast), showing it (mlops/training/sweep_view).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.budgets import lease_rows
from mlops.budgets.accounts import list_scopes, load_accounts
from mlops.budgets.configuration import load_applied
from mlops.budgets.lease_types import SpendLimit
from mlops.budgets.money import cost_of


@dataclass(frozen=True)
class SweepSpend:
    """Money of one sweep at one moment, micro-USD."""

    spent_micro_usd: int
    """Charged, and used of what is prepaid."""
    left_micro_usd: int | None
    """The least that its own limit, its budget or one above may still reserve; None where nothing has a cap."""
    prices: Mapping[str, int]
    """Lease to micro-USD per hour."""


def load_spend(
    connection: sa.Connection, sweep_id: str, *, budget: str, limits: Sequence[SpendLimit] = (), now_us: int
) -> SweepSpend:
    """What the sweep's leases cost until now."""
    rows = lease_rows.list_of_sweep(connection, sweep_id)
    path = load_applied(connection).path(budget)
    accounts = load_accounts(connection, list_scopes(path, limits, now_us=now_us)) if path else ()
    left = [account.left_micro_usd for account in accounts if account.left_micro_usd is not None]
    return SweepSpend(
        spent_micro_usd=sum(row.charged_micro_usd + _used_of_segment(row, now_us=now_us) for row in rows),
        left_micro_usd=min(left, default=None),
        prices={row.lease_id: row.price_micro_usd_per_hour for row in rows},
    )


def _used_of_segment(row: lease_rows.LeaseRow, *, now_us: int) -> int:
    if not row.is_live:
        return 0
    used = cost_of(row.price_micro_usd_per_hour, duration_us=now_us - row.segment_started_us)
    return min(used, row.reserved_micro_usd)
