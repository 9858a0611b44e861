"""Why a group waits or never can run, in a sentence a person can act on.

Leaves to others: finding out that it waits (`decide`).
"""

from __future__ import annotations

from mlops.budgets.board import Board, Entry
from mlops.budgets.placement import find_placement
from mlops.clock import SECOND_US
from mlops.errors import Reason
from mlops.units import render_money


def explain_never(board: Board, entry: Entry, *, is_fitting: bool) -> Reason | None:
    """A shape that can never fit the cluster or the quotas, naming the limit."""
    smallest = entry.group.smallest_units
    names = board.nodes_of.get(entry.kind, ())
    asked = f"{smallest / 1000:g} {entry.kind}"
    if not names:
        return Reason("unknown-accelerator", f"needs {asked}; the cluster has no {entry.kind}")
    if not is_fitting:
        largest, total = max(board.nodes[name].units for name in names) / 1000, board.total[entry.kind] / 1000
        text = f"needs {asked}; the cluster has {len(names)} nodes of at most {largest:g}, {total:g} in all"
        return Reason("never-fits-cluster", text)
    ceiling = board.quota.find_ceiling(entry.budget, entry.kind, smallest)
    if ceiling is not None:
        most = f"{ceiling.limit / 1000:g} at once (nominal + borrow)"
        text = f"needs {asked}; {ceiling.budget} may never have more than {most}"
        return Reason("never-fits-quota", text)
    return None


def explain_policy(board: Board, entry: Entry) -> Reason | None:
    """A threshold of a budget on the way up forbids starting, or borrowing."""
    if not board.actions:
        return None
    for name in board.quota.path(entry.budget):
        actions = board.actions.get(name, frozenset())
        if "no-new-trials" in actions or "checkpoint-and-stop" in actions:
            return Reason("budget-policy", f"{name} starts nothing new: the threshold for it is reached in this period")
        if "stop-borrowing" in actions:
            smallest = entry.group.smallest_units
            limit = board.quota.find_limit(entry.budget, entry.kind, smallest, may_borrow=False)
            if limit is not None:
                return Reason("budget-policy", f"{name} borrows no more in this period: {limit.render_text()}")
    return None


def explain_money(board: Board, entry: Entry, budget: str) -> Reason:
    """A budget that cannot prepay a start."""
    left, cost = board.money_left[budget], board.cost_of_start(entry)
    text = f"a start pays {render_money(cost)} ahead; {budget} has {render_money(max(left, 0))} left in this period"
    return Reason("cap-exceeded", text)


def explain_quota(board: Board, entry: Entry) -> Reason | None:
    """A quota that is used up, with who borrowed from it."""
    limit = board.quota.find_limit(entry.budget, entry.kind, entry.group.smallest_units)
    if limit is None:
        return None
    borrowers = _render_borrowers(board, entry)
    return Reason("quota-exceeded", limit.render_text() + (f"; {borrowers}" if borrowers else ""))


def explain_units(board: Board, entry: Entry, *, now_us: int) -> Reason:
    """Not enough free units in one place, and what would free them."""
    smallest = entry.group.smallest_units
    names = [name for name in board.nodes_of[entry.kind] if not board.nodes[name].is_draining]
    free = sum(board.free[name] for name in names)
    largest = max((board.free[name] for name in names), default=0)
    fits_one = any(board.nodes[name].units >= smallest for name in names)
    where = "on one node" if fits_one else "on whole nodes"
    text = f"needs {smallest / 1000:g} {entry.kind} {where}; {free / 1000:g} free, at most {largest / 1000:g} on one"
    borrowers = _render_borrowers(board, entry)
    if borrowers:
        text += f"; {borrowers}"
    protected = [
        each.started_us + board.settings.minimum_run_us - now_us
        for each in board.running.get(entry.kind, {}).values()
        if now_us - each.started_us < board.settings.minimum_run_us
    ]
    if protected:
        text += (
            f"; {len(protected)} groups have just started and are protected for up to {max(protected) // SECOND_US} s"
        )
    return Reason("units-busy", text)


def _render_borrowers(board: Board, entry: Entry) -> str:
    """`2 lent to vision, reclaim in at most 120 s`, when the group is within its budget's nominal."""
    if not board.quota.is_entitled(entry.budget, entry.kind, entry.group.smallest_units):
        return ""
    root = board.quota.path(entry.budget)[-1]
    found = []
    for budget in sorted({each.budget for each in board.running.get(entry.kind, {}).values()}):
        units = board.quota.borrowed(budget, entry.kind)
        if budget != entry.budget and units and board.quota.path(budget)[-1] == root:
            found.append(f"{units / 1000:g} lent to {budget}")
    if not found:
        return ""
    settings = board.settings
    seconds = (settings.minimum_run_us + settings.leave_us) // SECOND_US
    return f"{', '.join(found)}, reclaim in at most {seconds} s"


def is_free(board: Board, entry: Entry) -> bool:
    """Whether its smallest size would fit into what is free now."""
    names = board.nodes_of.get(entry.kind, ())
    return find_placement(board.nodes, board.free, names, entry.group.smallest_units) is not None
