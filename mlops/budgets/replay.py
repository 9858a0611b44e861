"""Balances rebuilt from events alone, and compared with the tables: what the ledger holds must follow from its events.

Leaves to others: that the events themselves are untouched (`mlops.ledger.sql_events.find_broken_event`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from mlops.budgets.lease_rows import LeaseRow
from mlops.budgets.sql_budgets import accounts, budgets, leases, warnings
from mlops.ledger.sql_events import Event, load_events


@dataclass
class Replayed:
    """The state that events add up to; amounts are micro-USD."""

    accounts: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """Charged, reserved and overdraft per scope and period."""
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    budgets: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: dict[tuple[str, int, int], tuple[str, int | None, int]] = field(default_factory=dict)
    """Action, time of delivery and attempts per scope, period and part."""


def replay(events: Iterable[Event]) -> Replayed:
    """Fold events, in order."""
    state = Replayed()
    for event in events:
        apply = _APPLY.get(event.kind)
        if apply is not None:
            apply(state, event)
    return state


def _apply_reserved(state: Replayed, event: Event) -> None:
    lease = event.body["lease"]
    state.leases[event.subject] = lease
    _post(state, lease, reserved=lease["reserved_micro_usd"])


def _apply_renewed(state: Replayed, event: Event) -> None:
    before, after = state.leases[event.subject], event.body["lease"]
    charge = event.body["charge"]
    _post(state, before, charged=charge, reserved=-before["reserved_micro_usd"])
    _post(state, after, reserved=after["reserved_micro_usd"])
    for scope, overdraft in event.body["overdrafts"].items():
        start = next(start for each, start, _ in after["scopes"] if each == scope)
        state.accounts[scope, start][2] = overdraft
    state.leases[event.subject] = after


def _apply_closed(state: Replayed, event: Event) -> None:
    before = state.leases[event.subject]
    _post(state, before, charged=event.body["charge"], reserved=-before["reserved_micro_usd"])
    state.leases[event.subject] = event.body["lease"]


def _apply_budget(state: Replayed, event: Event) -> None:
    state.budgets[event.subject] = {**event.body, "at_us": event.at_us}


def _apply_warning(state: Replayed, event: Event) -> None:
    key = (event.subject, event.body["period_start_us"], event.body["basis_points"])
    state.warnings[key] = (event.body["action"], None, 0)


def _apply_delivery(state: Replayed, event: Event) -> None:
    key = (event.subject, event.body["period_start_us"], event.body["basis_points"])
    action, delivered_us, attempts = state.warnings[key]
    if event.kind == "warning.delivered":
        delivered_us = event.at_us
    state.warnings[key] = (action, delivered_us, attempts + 1)


def _post(state: Replayed, lease: dict[str, Any], *, charged: int = 0, reserved: int = 0) -> None:
    for scope, start, _ in lease["scopes"]:
        balances = state.accounts.setdefault((scope, start), [0, 0, 0])
        balances[0] += charged
        balances[1] += reserved


_APPLY = {
    "lease.reserved": _apply_reserved,
    "lease.renewed": _apply_renewed,
    "lease.settled": _apply_closed,
    "lease.expired": _apply_closed,
    "budget.applied": _apply_budget,
    "threshold.crossed": _apply_warning,
    "warning.delivered": _apply_delivery,
    "warning.failed": _apply_delivery,
}


def load_tables(connection: sa.Connection) -> Replayed:
    """The same state as the tables hold it."""
    state = Replayed()
    for row in connection.execute(sa.select(accounts)):
        balances = [row.charged_micro_usd, row.reserved_micro_usd, row.overdraft_micro_usd]
        state.accounts[row.scope, row.period_start_us] = balances
    for row in connection.execute(sa.select(leases)):
        content = {**row._mapping, "scopes": json.loads(row.scopes)}
        state.leases[row.lease_id] = LeaseRow.from_json(content).to_json()
    for row in connection.execute(sa.select(budgets)):
        fields = {**row._mapping, "content": json.loads(row.content)}
        state.budgets[fields.pop("name")] = fields
    for row in connection.execute(sa.select(warnings)):
        key = (row.scope, row.period_start_us, row.basis_points)
        state.warnings[key] = (row.action, row.delivered_us, row.attempts)
    return state


def find_differences(connection: sa.Connection) -> tuple[str, ...]:
    """Where tables and events differ, and leases or accounts that do not add up; empty when all is well."""
    told, held = replay(load_events(connection)), load_tables(connection)
    found: list[str] = []
    for name in ("accounts", "leases", "budgets", "warnings"):
        expected, actual = getattr(told, name), getattr(held, name)
        found.extend(
            f"{name} {key}: events say {expected.get(key)}, the table {actual.get(key)}"
            for key in sorted(expected.keys() | actual.keys(), key=str)
            if expected.get(key) != actual.get(key)
        )
    return (*found, *_find_unbalanced(held))


def _find_unbalanced(held: Replayed) -> list[str]:
    found = []
    sums: dict[tuple[str, int], int] = {}
    for lease_id, lease in held.leases.items():
        parts = lease["reserved_micro_usd"] + lease["charged_micro_usd"] + lease["refunded_micro_usd"]
        if parts != lease["paid_micro_usd"]:
            found.append(f"lease {lease_id}: paid {lease['paid_micro_usd']}, accounted for {parts}")
        for scope, start, _ in lease["scopes"]:
            sums[scope, start] = sums.get((scope, start), 0) + lease["reserved_micro_usd"]
    for key, (_, reserved, _) in held.accounts.items():
        if reserved != sums.get(key, 0):
            found.append(f"account {key}: {reserved} reserved, its leases hold {sums.get(key, 0)}")
    return found
