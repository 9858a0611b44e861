"""Budget files into the ledger: what is applied there holds for everyone, whatever an old checkout says.

A file whose content the ledger has never seen becomes the applied version; one that was applied once and replaced
since is older than the ledger and is left alone. `set_budget` changes the applied version directly, with who and why.
Leaves to others: reading files (`spec`), balances (`accounts`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from mlops.budgets.sql_budgets import budget_digests, budgets
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, digest_json
from mlops.ledger.connection import Ledger, Transaction

RATES = "rates"
_SELECT = sa.select(budgets.c.name, budgets.c.content).order_by(budgets.c.name)


@dataclass(frozen=True)
class Change:
    """One budget (or the rate card) that was applied, or left alone because the ledger holds a newer one."""

    name: str
    is_applied: bool
    text: str


def load_applied(connection: sa.Connection) -> BudgetTree:
    """The tree that holds now; empty before the first `apply_budgets`."""
    rows = connection.execute(_SELECT).all()
    return _build_tree(tuple((row.name, row.content) for row in rows))


@lru_cache(maxsize=16)
def _build_tree(contents: tuple[tuple[str, str], ...]) -> BudgetTree:
    rates, nodes = RateCard(()), []
    for name, content in contents:
        if name == RATES:
            rates = RateCard.from_json(json.loads(content))
        else:
            nodes.append(_parse_node(content))
    return BudgetTree.of(nodes, rates=rates)


@lru_cache(maxsize=4096)
def _parse_node(content: str) -> BudgetNode:
    return BudgetNode.from_json(json.loads(content))


def apply_budgets(ledger: Ledger, tree: BudgetTree, *, who: str) -> tuple[Change, ...]:
    """Bring new or changed files into the ledger; costs one read when nothing changed."""
    contents = {node.name: node.to_json() for node in tree.nodes} | {RATES: tree.rates.to_json()}
    wanted = {name: digest_json(content) for name, content in contents.items()}
    with ledger.read() as connection:
        if _load_digests(connection) == wanted:
            return ()
    with ledger.write() as transaction:
        changes = []
        applied = _load_digests(transaction.connection)
        for name in sorted(contents):
            if applied.get(name) != wanted[name]:
                changes.append(_apply(transaction, name, contents[name], wanted[name], who=who))
        return tuple(changes)


def set_budget(ledger: Ledger, node: BudgetNode, *, who: str, why: str) -> None:
    """Apply a changed budget at once, with who did it and why."""
    with ledger.write() as transaction:
        write_version(transaction, node.name, node.to_json(), source="set", who=who, why=why)


def apply_file(ledger: Ledger, files: BudgetTree, name: str, *, who: str, why: str) -> None:
    """Apply one file as it stands, also one that is older than the ledger: a mistake that was taken back in git."""
    content = files.rates.to_json() if name == RATES else files.by_name[name].to_json()
    with ledger.write() as transaction:
        write_version(transaction, name, content, source="set", who=who, why=why)


def find_disagreements(connection: sa.Connection, files: BudgetTree) -> tuple[str, ...]:
    """Sentences about what holds though the files, new ones applied, say something else."""
    wanted = {node.name: node.digest for node in files.nodes} | {RATES: files.rates.digest}
    notes = []
    for row in connection.execute(sa.select(budgets.c.name, budgets.c.digest, budgets.c.who, budgets.c.why)):
        if row.name not in wanted:
            notes.append(f"{row.name}: it holds on without budgets/{row.name}.yaml, which is gone")
        elif wanted[row.name] != row.digest:
            notes.append(
                f"{row.name}: budgets/{row.name}.yaml says something else than what holds, which {row.who} set "
                f"({row.why}); to go back to the file: mlops budget set {row.name} --from-file --why …"
            )
    return tuple(notes)


def _apply(transaction: Transaction, name: str, content: Mapping[str, Any], digest: str, *, who: str) -> Change:
    seen = transaction.connection.execute(
        sa.select(budget_digests.c.digest).where(budget_digests.c.name == name, budget_digests.c.digest == digest)
    ).one_or_none()
    if seen is not None:
        text = f"{name}: the file is older than what the ledger holds; `mlops budget show {name}` says who changed it"
        return Change(name, is_applied=False, text=text)
    write_version(transaction, name, content, source="file", who=who, why="the file changed")
    return Change(name, is_applied=True, text=f"{name}: applied from its file")


def write_version(
    transaction: Transaction, name: str, content: Mapping[str, Any], *, source: str, who: str, why: str
) -> None:
    """Append the event and replace the row."""
    connection = transaction.connection
    digest = digest_json(content)
    version = (connection.scalar(sa.select(budgets.c.version).where(budgets.c.name == name)) or 0) + 1
    row = {"digest": digest, "version": version, "source": source, "who": who, "why": why}
    transaction.append("budget.applied", name, {**row, "content": dict(content)})
    connection.execute(budgets.delete().where(budgets.c.name == name))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    connection.execute(budgets.insert().values(name=name, content=text, at_us=transaction.now_us, **row))
    known = sa.select(budget_digests.c.name).where(budget_digests.c.name == name, budget_digests.c.digest == digest)
    if connection.execute(known).one_or_none() is None:
        connection.execute(budget_digests.insert().values(name=name, digest=digest))


def _load_digests(connection: sa.Connection) -> dict[str, str]:
    return {row.name: row.digest for row in connection.execute(sa.select(budgets.c.name, budgets.c.digest))}
