"""Balances of scopes: what is charged and reserved against which cap, in which period; and the thresholds they cross.

A scope is a budget (`budget:<name>`) or an own limit of a sweep or trial (`sweep:<id>`). Always: charged + reserved <=
cap + overdraft; an overdraft is granted to serving replicas only, never to training, and never for growth.
Leaves to others: when to pay (`leases`), delivering the warnings (`outbox`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from mlops.budgets.lease_types import SpendLimit
from mlops.budgets.sql_budgets import accounts, warnings
from mlops.budgets.tree import FULL, BudgetNode, Period, Threshold, find_period_start
from mlops.errors import Reason
from mlops.ledger.connection import Transaction
from mlops.units import render_money

ScopeKey = tuple[str, int]
"""Scope and start of its period."""


@dataclass(frozen=True)
class Account:
    """One scope in one period."""

    scope: str
    period_start_us: int
    period: Period
    cap_micro_usd: int | None
    charged_micro_usd: int = 0
    reserved_micro_usd: int = 0
    overdraft_micro_usd: int = 0
    thresholds: tuple[Threshold, ...] = ()
    exists: bool = False

    @property
    def key(self) -> ScopeKey:
        """Identity of the row."""
        return self.scope, self.period_start_us

    @property
    def committed_micro_usd(self) -> int:
        """Spent or prepaid."""
        return self.charged_micro_usd + self.reserved_micro_usd

    @property
    def left_micro_usd(self) -> int | None:
        """What may still be reserved; negative after a cut."""
        if self.cap_micro_usd is None:
            return None
        return self.cap_micro_usd + self.overdraft_micro_usd - self.committed_micro_usd

    def find_actions(self, *, added: int = 0) -> frozenset[str]:
        """Actions whose threshold is reached now, or would be with `added` micro-USD more."""
        if self.cap_micro_usd is None or not self.thresholds:
            return frozenset()
        part = (self.committed_micro_usd + added) * FULL
        return frozenset(t.action for t in self.thresholds if part >= t.basis_points * self.cap_micro_usd)


def list_scopes(path: Sequence[BudgetNode], limits: Iterable[SpendLimit], *, now_us: int) -> tuple[Account, ...]:
    """Empty accounts of everything that pays: own limits first, then the budget and its ancestors."""
    own = [Account(limit.scope, 0, "once", limit.cap_micro_usd) for limit in limits]
    return (
        *own,
        *(
            Account(
                scope=f"budget:{node.name}",
                period_start_us=find_period_start(node.period, at_us=now_us),
                period=node.period,
                cap_micro_usd=node.cap_micro_usd,
                thresholds=node.thresholds,
            )
            for node in path
        ),
    )


_SELECT = sa.select(accounts).where(accounts.c.scope.in_(sa.bindparam("p_scopes", expanding=True)))
_POST = (
    accounts.update()
    .where(accounts.c.scope == sa.bindparam("p_scope"), accounts.c.period_start_us == sa.bindparam("p_start"))
    .values(
        charged_micro_usd=accounts.c.charged_micro_usd + sa.bindparam("p_charged"),
        reserved_micro_usd=accounts.c.reserved_micro_usd + sa.bindparam("p_reserved"),
    )
)


def load_accounts(connection: sa.Connection, scopes: Sequence[Account]) -> tuple[Account, ...]:
    """The same scopes with their balances."""
    rows = {}
    for row in connection.execute(_SELECT, {"p_scopes": sorted({scope.scope for scope in scopes})}):
        rows[row.scope, row.period_start_us] = row
    return tuple(_fill(scope, rows.get(scope.key)) for scope in scopes)


def _fill(scope: Account, row: sa.Row[tuple[object, ...]] | None) -> Account:
    if row is None:
        return scope
    return replace(
        scope,
        charged_micro_usd=row.charged_micro_usd,
        reserved_micro_usd=row.reserved_micro_usd,
        overdraft_micro_usd=row.overdraft_micro_usd,
        exists=True,
    )


def find_shortages(loaded: Sequence[Account], *, amount: int) -> tuple[Reason, ...]:
    """Every scope that cannot pay `amount` more."""
    found = []
    for account in loaded:
        left = account.left_micro_usd
        if left is not None and amount > left:
            code = "cap-exceeded" if account.scope.startswith("budget:") else "limit-exceeded"
            cap = account.cap_micro_usd or 0
            text = (
                f"{account.scope} has {render_money(cap)} per {account.period}, of which "
                f"{render_money(account.charged_micro_usd)} are spent and {render_money(account.reserved_micro_usd)} "
                f"prepaid; this needs {render_money(amount)} more"
            )
            found.append(Reason(code, text.replace(" per once", " in all")))
    return tuple(found)


def post(transaction: Transaction, loaded: Sequence[Account], *, charged: int = 0, reserved: int = 0) -> None:
    """Add to the balances of every scope."""
    create_missing(transaction, loaded)
    post_many(transaction, {account.key: (charged, reserved) for account in loaded})


def post_many(transaction: Transaction, amounts: Mapping[ScopeKey, tuple[int, int]]) -> None:
    """Add charged and reserved amounts to accounts that exist."""
    transaction.connection.execute(
        _POST,
        [
            {"p_scope": scope, "p_start": start, "p_charged": charged, "p_reserved": reserved}
            for (scope, start), (charged, reserved) in amounts.items()
        ],
    )


def create_missing(transaction: Transaction, loaded: Iterable[Account]) -> None:
    """Rows for accounts that have none yet."""
    missing = [account for account in loaded if not account.exists]
    if missing:
        _insert_accounts(transaction.connection, missing)


def set_overdraft(transaction: Transaction, account: Account, *, overdraft: int) -> None:
    """Let serving replicas go beyond a cap, by this much in all."""
    if not account.exists:
        _insert_accounts(transaction.connection, [account])
    transaction.connection.execute(
        accounts.update()
        .where(accounts.c.scope == account.scope, accounts.c.period_start_us == account.period_start_us)
        .values(overdraft_micro_usd=overdraft)
    )


def _insert_accounts(connection: sa.Connection, missing: Iterable[Account]) -> None:
    connection.execute(
        accounts.insert(),
        [
            {
                "scope": account.scope,
                "period_start_us": account.period_start_us,
                "cap_micro_usd": None if account.scope.startswith("budget:") else account.cap_micro_usd,
                "charged_micro_usd": 0,
                "reserved_micro_usd": 0,
                "overdraft_micro_usd": 0,
            }
            for account in missing
        ],
    )


def warn_crossed(
    transaction: Transaction, loaded: Sequence[Account], *, added: int, stopped: Collection[str] = ()
) -> None:
    """Write a warning for every threshold that `added` crossed, once per period.

    Args:
        transaction: The one that crosses it.
        loaded: Balances before `added`.
        added: Micro-USD that become committed.
        stopped: Scopes that cannot pay a renewal: their whole cap counts as reached.
    """
    for account in loaded:
        cap = account.cap_micro_usd
        if cap is None:
            continue
        reached = FULL * cap if account.scope in stopped else (account.committed_micro_usd + added) * FULL
        crossed = [threshold for threshold in account.thresholds if reached >= threshold.basis_points * cap]
        if crossed:
            _insert_warnings(transaction, account, crossed, committed=account.committed_micro_usd + added)


def _insert_warnings(
    transaction: Transaction, account: Account, crossed: Sequence[Threshold], *, committed: int
) -> None:
    known = set(
        transaction.connection.scalars(
            sa.select(warnings.c.basis_points).where(
                warnings.c.scope == account.scope, warnings.c.period_start_us == account.period_start_us
            )
        )
    )
    for threshold in crossed:
        if threshold.basis_points in known:
            continue
        text = (
            f"{account.scope} has committed {render_money(committed)} of {render_money(account.cap_micro_usd or 0)} "
            f"per {account.period}, {threshold.basis_points / 100:g} % is reached: {threshold.action}"
        )
        body = {
            "period_start_us": account.period_start_us,
            "basis_points": threshold.basis_points,
            "action": threshold.action,
            "text": text,
        }
        transaction.append("threshold.crossed", account.scope, body)
        transaction.connection.execute(
            warnings.insert().values(
                scope=account.scope,
                crossed_us=transaction.now_us,
                delivered_us=None,
                attempts=0,
                next_attempt_us=transaction.now_us,
                last_error="",
                **body,
            )
        )
