"""Whom to stop so that a group can start: the cheapest set, no larger than needed, and only if it provably helps.

A group may take the place of (a) groups of its own budget with lower rank, or (b) when it stays within its budget's
nominal quota, groups of budgets that use more than theirs: reclaim of what was lent.
Why this ends: a running group's rank is its priority class, then less remaining work. Case (a) replaces strictly lower
ranks by a higher one, case (b) strictly lowers the units used above nominal; both are checked after needless victims
were put back (kueue#14543 lacks that), and a group never evicts one that evicted it and still runs. Between two events
from outside, ranks of waiting groups stand still and those of running ones only rise, so the vector of running groups
by rank rises in lexicographic order at every step, and it is bounded.
Leaves to others: who asks (`decide`), checkpoints (mlops/training).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlops.budgets.board import Board, Entry
from mlops.budgets.placement import find_placement
from mlops.budgets.state import Placement


@dataclass(frozen=True)
class Eviction:
    """Victims and the place they free."""

    victims: tuple[Entry, ...]
    placement: Placement


def find_eviction(board: Board, entry: Entry, *, units: int, now_us: int) -> Eviction | None:
    """The cheapest admissible set of victims for `units` of a waiting group; None when there is none."""
    candidates = [
        each
        for budget in _list_budgets(board, entry, units=units)
        for each in board.running_in.get((budget, entry.kind), {}).values()
        if is_admissible(board, entry, each, units=units, now_us=now_us)
    ]
    if not candidates:
        return None
    candidates.sort(key=lambda each: (*_cost(board, each, now_us), each.group.group_id))
    best: Eviction | None = None
    best_cost: tuple[int, int] | None = None
    for chosen in _propose(board, entry, candidates, units=units):
        eviction = _trim(board, entry, chosen, units=units)
        if eviction is None or not _is_progress(board, entry, eviction.victims, units=units):
            continue
        costs = [_cost(board, each, now_us) for each in eviction.victims]
        cost = (sum(lost for lost, _ in costs), sum(left for _, left in costs))
        if best_cost is None or cost < best_cost:
            best, best_cost = eviction, cost
    return best


def _list_budgets(board: Board, entry: Entry, *, units: int) -> Iterable[str]:
    """Budgets whose groups may have to make room: its own, and with a claim to nominal those that borrow."""
    yield entry.budget
    if board.quota.is_entitled(entry.budget, entry.kind, units):
        root = board.quota.path(entry.budget)[-1]
        yield from (each for each in board.quota.below(root) if each != entry.budget)


def is_admissible(board: Board, entry: Entry, victim: Entry, *, units: int, now_us: int) -> bool:
    """Whether one group may ever make room for another now."""
    settings = board.settings
    if victim.status != "running" or victim.group.is_serving:
        return False
    if now_us - victim.started_us < max(settings.minimum_run_us, 1):
        return False  # what was started at this very moment is not stopped again
    if victim.group.group_id in entry.group.evicted_by:
        return False
    if victim.yields_to == entry.group.group_id and now_us >= victim.yields_from_us:
        return True
    if victim.budget == entry.budget:
        return outranks(board, entry, victim, units=units, now_us=now_us)
    return _may_reclaim(board, entry, victim, units=units)


def outranks(board: Board, entry: Entry, victim: Entry, *, units: int, now_us: int) -> bool:
    """Whether a waiting group has strictly higher rank than a running one of its budget."""
    if entry.priority != victim.priority:
        return entry.priority > victim.priority
    settings = board.settings
    if not settings.is_preempting_by_work or entry.group.is_serving:
        return False
    own = (entry.remaining_us * entry.units // units + settings.restart_us) * units
    return own * settings.gain < board.remaining(victim, now_us) * victim.units


def _may_reclaim(board: Board, entry: Entry, victim: Entry, *, units: int) -> bool:
    """Both below one ancestor: the asking side stays within nominal, the victim's side is above it."""
    own_path, other_path = board.quota.path(entry.budget), board.quota.path(victim.budget)
    if own_path[-1] != other_path[-1]:
        return False
    shared = set(own_path) & set(other_path)
    if not all(board.quota.is_entitled(name, entry.kind, units) for name in own_path if name not in shared):
        return False
    return any(board.quota.borrowed(name, entry.kind) > 0 for name in other_path if name not in shared)


def _cost(board: Board, entry: Entry, now_us: int) -> tuple[int, int]:
    """Accelerator-time that stopping it loses; then the one with most work left first."""
    undone_us = 0 if entry.group.keeps_work else max(now_us - entry.checkpointed_us, 0)
    lost = entry.units * (undone_us + board.settings.restart_us)
    return lost, -board.remaining(entry, now_us) * entry.units


def _propose(board: Board, entry: Entry, candidates: Sequence[Entry], *, units: int) -> Iterable[list[Entry]]:
    """Sets that free enough: per node for a group no larger than one, over nodes for larger ones."""
    by_node: dict[str, list[Entry]] = {}
    for each in candidates:
        for name, _ in each.placement:
            by_node.setdefault(name, []).append(each)
    names = [name for name in board.nodes_of[entry.kind] if not board.nodes[name].is_draining]
    fits_one = any(board.nodes[name].units >= units for name in names)
    if fits_one:
        for name in names:
            chosen = _take(by_node.get(name, ()), name, need=units - board.free[name])
            if chosen is not None:
                yield from _mend_quota(board, entry, chosen, candidates, units=units)
        return
    options = []
    for name in names:
        chosen = _take(by_node.get(name, ()), name, need=board.nodes[name].units - board.free[name])
        if chosen is not None:
            options.append((sum(each.units for each in chosen), name, chosen))
    options.sort(key=lambda option: option[:2])
    together: dict[str, Entry] = {}
    freed = 0
    for _, name, chosen in options:
        together.update({each.group.group_id: each for each in chosen})
        freed += board.nodes[name].units
        if freed >= units:
            yield from _mend_quota(board, entry, list(together.values()), candidates, units=units)
            return


def _take(on_node: Iterable[Entry], name: str, *, need: int) -> list[Entry] | None:
    chosen: list[Entry] = []
    for each in on_node:
        if need <= 0:
            break
        chosen.append(each)
        need -= dict(each.placement)[name]
    return chosen if need <= 0 else None


def _mend_quota(
    board: Board, entry: Entry, chosen: list[Entry], candidates: Sequence[Entry], *, units: int
) -> Iterable[list[Entry]]:
    """Add victims until the quota, too, has room; nothing when it cannot."""
    chosen = list(chosen)
    for each in chosen:
        board.lift(each)
    try:
        for each in candidates:
            if board.quota.find_limit(entry.budget, entry.kind, units) is None:
                break
            if each not in chosen:
                chosen.append(each)
                board.lift(each)
        is_enough = board.quota.find_limit(entry.budget, entry.kind, units) is None
    finally:
        for each in chosen:
            board.put_back(each)
    if is_enough and chosen:
        yield chosen


def _trim(board: Board, entry: Entry, chosen: Sequence[Entry], *, units: int) -> Eviction | None:
    """Put back, dearest first, every victim that is not needed."""
    for each in chosen:
        board.lift(each)
    kept: list[Entry] = list(chosen)
    names = board.nodes_of[entry.kind]
    try:
        for each in reversed(chosen):
            board.put_back(each)
            if _fits(board, entry, units=units):
                kept.remove(each)
            else:
                board.lift(each)
        placement = find_placement(board.nodes, board.free, names, units)
    finally:
        for each in kept:
            board.put_back(each)
    return Eviction(tuple(kept), placement) if placement is not None and kept else None


def _fits(board: Board, entry: Entry, *, units: int) -> bool:
    if board.quota.find_limit(entry.budget, entry.kind, units) is not None:
        return False
    return find_placement(board.nodes, board.free, board.nodes_of[entry.kind], units) is not None


def _is_progress(board: Board, entry: Entry, victims: Sequence[Entry], *, units: int) -> bool:
    """The potential falls: with victims from other budgets, less is used above nominal afterwards than before."""
    others = {each.budget for each in victims} - {entry.budget}
    if not others:
        return True  # strictly lower ranks of its own budget, by `outranks`
    watched = {name for budget in (*others, entry.budget) for name in board.quota.path(budget)}
    before = sum(board.quota.borrowed(name, entry.kind) for name in watched)
    for each in victims:
        board.quota.use(each.budget, each.kind, -each.units)
    board.quota.use(entry.budget, entry.kind, units)
    after = sum(board.quota.borrowed(name, entry.kind) for name in watched)
    board.quota.use(entry.budget, entry.kind, -units)
    for each in victims:
        board.quota.use(each.budget, each.kind, each.units)
    return after < before
