"""What `mlops budget show` shows: per budget the money, the quota and the warnings, read from the ledger alone.

Leaves to others: printing (mlops/cli), deciding (`decide`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from mlops.budgets import lease_rows
from mlops.budgets.accounts import Account, list_scopes, load_accounts
from mlops.budgets.configuration import load_applied
from mlops.budgets.forecast import find_exhaustion
from mlops.budgets.outbox import Notice, list_warnings
from mlops.budgets.quota import QuotaBoard
from mlops.budgets.sql_budgets import budgets, leases
from mlops.budgets.tree import BudgetNode, BudgetTree
from mlops.ledger.sql_events import load_events


@dataclass(frozen=True)
class QuotaLine:
    """One kind of accelerator in one budget."""

    kind: str
    nominal: float
    used: float
    borrowed: float
    lent: float


@dataclass(frozen=True)
class BudgetLine:
    """One budget."""

    name: str
    depth: int
    parent: str
    period: str
    cap_micro_usd: int | None
    charged_micro_usd: int
    reserved_micro_usd: int
    overdraft_micro_usd: int
    burn_micro_usd_per_hour: int
    """Of the live leases in it and below it."""
    exhausted_us: int | None
    """When it runs out at this burn, within this period."""
    actions: tuple[str, ...]
    """Threshold actions in force."""
    quotas: tuple[QuotaLine, ...]
    changed_by: str = ""
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Overview:
    """All budgets, parents before children, and their warnings."""

    lines: tuple[BudgetLine, ...]
    warnings: tuple[Notice, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "budgets": [line.to_json() for line in self.lines],
            "warnings": [asdict(each) for each in self.warnings],
        }


def load_overview(connection: sa.Connection, *, now_us: int) -> Overview:
    """Everything at one moment."""
    tree = load_applied(connection)
    board = QuotaBoard(tree)
    burn: dict[str, int] = {}
    for lease in lease_rows.list_live(connection):
        for node in tree.path(lease.budget):
            burn[node.name] = burn.get(node.name, 0) + lease.price_micro_usd_per_hour
        if lease.budget in tree.by_name:
            board.use(lease.budget, lease.kind, lease.milli)
    changes = {row.name: row for row in connection.execute(sa.select(budgets.c.name, budgets.c.who, budgets.c.why))}
    lines = []
    for node, depth in _walk(tree, "", 0):
        account = load_accounts(connection, list_scopes([node], (), now_us=now_us))[0]
        line = _make_line(node, depth, account, tree, board, burn=burn.get(node.name, 0), now_us=now_us)
        lines.append(replace(line, changed_by=changes[node.name].who, why=changes[node.name].why))
    return Overview(tuple(lines), list_warnings(connection))


def _walk(tree: BudgetTree, parent: str, depth: int) -> list[tuple[BudgetNode, int]]:
    found = []
    for child in tree.children.get(parent, ()):
        found.append((child, depth))
        found.extend(_walk(tree, child.name, depth + 1))
    return found


def _make_line(
    node: BudgetNode,
    depth: int,
    account: Account,
    tree: BudgetTree,
    board: QuotaBoard,
    *,
    burn: int,
    now_us: int,
) -> BudgetLine:
    kinds = sorted(kind for kind in tree.rates.kinds if board.quota(node.name, kind) is not None)
    return BudgetLine(
        name=node.name,
        depth=depth,
        parent=node.parent,
        period=node.period,
        cap_micro_usd=node.cap_micro_usd,
        charged_micro_usd=account.charged_micro_usd,
        reserved_micro_usd=account.reserved_micro_usd,
        overdraft_micro_usd=account.overdraft_micro_usd,
        burn_micro_usd_per_hour=burn,
        exhausted_us=find_exhaustion(account, burn_micro_usd_per_hour=burn, now_us=now_us),
        actions=tuple(sorted(account.find_actions())),
        quotas=tuple(_make_quota_line(node, kind, board) for kind in kinds),
    )


def _make_quota_line(node: BudgetNode, kind: str, board: QuotaBoard) -> QuotaLine:
    quota = board.quota(node.name, kind)
    assert quota is not None
    lent = board.find_lent(node.parent, kind).get(node.name, 0) if node.parent else 0
    return QuotaLine(
        kind,
        nominal=quota.nominal / 1000,
        used=board.used[node.name, kind] / 1000,
        borrowed=board.borrowed(node.name, kind) / 1000,
        lent=lent / 1000,
    )


def load_history(connection: sa.Connection, name: str) -> tuple[dict[str, Any], ...]:
    """Every applied version of one budget, oldest first: who, why, when."""
    return tuple(
        {"at_us": event.at_us, **{key: event.body[key] for key in ("version", "source", "who", "why", "digest")}}
        for event in load_events(connection, kind_prefix="budget.applied", subject=name)
    )


def load_finished_seconds(connection: sa.Connection, *, sweep_prefix: str) -> tuple[float, ...]:
    """Run times of ended leases whose sweep has this prefix, for forecasts."""
    query = sa.select(leases.c.started_us, leases.c.ended_us).where(
        leases.c.is_live.is_(False), leases.c.sweep_id.startswith(sweep_prefix, autoescape=True)
    )
    return tuple((row.ended_us - row.started_us) / 1e6 for row in connection.execute(query))
