"""Accelerators at once, over a tree of budgets: nominal, borrowing and lending, counted in thousandths.

A budget may use `nominal + borrow`; what it leaves idle may be used by its siblings up to its `lend`; the rest of its
nominal is kept for it. A parent's nominal is the total of all below it; a budget without a quota for a kind stands for
the sum of its children and may borrow without limit, and a kind that no budget of a tree names is not limited there.
Semantics after Kueue's KEP-79 and KEP-1224, but for the parent, whose nominal is a total and not an addition.
Leaves to others: money (`accounts`), who goes first (`decide`), nodes of the cluster (`placement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import cast

from mlops.budgets.tree import BudgetNode, BudgetTree, Quota

UNLIMITED = 1 << 60


@dataclass(frozen=True)
class QuotaLimit:
    """Where a request hits a limit."""

    budget: str
    """The node whose limit it is."""
    kind: str
    nominal: int
    limit: int
    used: int
    asked: int
    is_reserve_of_siblings: bool = False
    """Free units exist, but siblings keep them for themselves."""

    def render_text(self) -> str:
        """A sentence for people."""
        free = max(self.limit - self.used, 0) / 1000
        base = (
            f"needs {self.asked / 1000:g} {self.kind}; {self.budget} uses {self.used / 1000:g} of "
            f"{self.nominal / 1000:g} nominal and may have {self.limit / 1000:g} at once, {free:g} left"
        )
        return base + (", which its siblings do not lend" if self.is_reserve_of_siblings else "")


class QuotaBoard:
    """Units in use in every budget of a tree; changes are cheap, so that a plan can be tried and taken back."""

    def __init__(self, tree: BudgetTree) -> None:
        self._paths = {node.name: tuple(reversed(_names(tree, node.name))) for node in tree.nodes}
        self._up = {node.name: _names(tree, node.name) for node in tree.nodes}
        self._kinds = {root: _kinds_below(tree, root) for root in {path[0] for path in self._paths.values()}}
        self._below = {
            root: tuple(sorted(name for name, path in self._paths.items() if path[0] == root)) for root in self._kinds
        }
        self._quotas: dict[tuple[str, str], Quota] = {}
        for root, kinds in self._kinds.items():
            for kind in kinds:
                self._fill_quotas(tree, tree.by_name[root], kind)
        self.used: dict[tuple[str, str], int] = {}
        """(budget, kind) to units used in it and below it."""
        self._pool: dict[tuple[str, str], int] = {}
        for key in self._quotas:
            self.used[key] = 0
            self._pool[key] = 0
        for name in sorted(self._paths, key=lambda each: -len(self._paths[each])):
            for kind in self._kinds[self._paths[name][0]]:
                parent = self._paths[name][-2] if len(self._paths[name]) > 1 else None
                if parent is not None:
                    self._pool[parent, kind] += max(self._pool[name, kind], self._kept(name, kind))

    @classmethod
    def of(cls, tree: BudgetTree) -> QuotaBoard:
        """The empty board of a tree, made once per tree; `copy` it before use."""
        kept = vars(tree).get("_empty_board")
        if kept is None:
            kept = cls(tree)
            vars(tree)["_empty_board"] = kept
        return cast(QuotaBoard, kept)

    def copy(self) -> QuotaBoard:
        """Another board of the same tree with the same use."""
        twin = copy(self)
        twin.used, twin._pool = dict(self.used), dict(self._pool)
        return twin

    def _fill_quotas(self, tree: BudgetTree, node: BudgetNode, kind: str) -> int:
        below = sum(self._fill_quotas(tree, child, kind) for child in tree.children.get(node.name, ()))
        quota = node.quotas.get(kind)
        if quota is None:
            quota = Quota(nominal=below, borrow=None, lend=None)
        self._quotas[node.name, kind] = quota
        return quota.nominal

    def _kept(self, name: str, kind: str) -> int:
        quota = self._quotas[name, kind]
        return 0 if quota.lend is None else max(quota.nominal - quota.lend, 0)

    def quota(self, name: str, kind: str) -> Quota | None:
        """The quota of a budget; None: the kind is not limited in its tree."""
        return self._quotas.get((name, kind))

    def path(self, name: str) -> tuple[str, ...]:
        """Names from the budget up to its root."""
        return self._up[name]

    def below(self, root: str) -> tuple[str, ...]:
        """Every budget of a tree, by name."""
        return self._below[root]

    def limit(self, name: str, kind: str) -> int:
        """Most units at once in a budget."""
        quota = self._quotas[name, kind]
        if len(self._up[name]) == 1:
            return quota.nominal
        return UNLIMITED if quota.borrow is None else quota.nominal + quota.borrow

    def use(self, name: str, kind: str, units: int) -> None:
        """Add (or, when negative, give back) units; does not ask whether it may."""
        if (name, kind) not in self._quotas:
            return
        delta = units
        for each in self._up[name]:
            key = (each, kind)
            self.used[key] += units
            before = max(self._pool[key], self._kept(each, kind))
            self._pool[key] += delta
            delta = max(self._pool[key], self._kept(each, kind)) - before

    def find_limit(self, name: str, kind: str, units: int, *, may_borrow: bool = True) -> QuotaLimit | None:
        """The first limit that `units` more would break; None: they may be used."""
        if (name, kind) not in self._quotas:
            return None
        delta = units
        for each in self._up[name]:
            key = (each, kind)
            quota, used, pool = self._quotas[key], self.used[key], self._pool[key]
            limit = self.limit(each, kind)
            if each == name and not may_borrow:
                limit = min(limit, quota.nominal)
            if used + units > limit:
                return QuotaLimit(each, kind, quota.nominal, limit, used, units)
            if delta > 0 and pool + delta > limit:
                return QuotaLimit(each, kind, quota.nominal, limit, used, units, is_reserve_of_siblings=True)
            kept = self._kept(each, kind)
            delta = max(pool + delta, kept) - max(pool, kept)
        return None

    def find_ceiling(self, name: str, kind: str, units: int) -> QuotaLimit | None:
        """The limit that `units` would break even if nothing else ran."""
        if (name, kind) not in self._quotas:
            return None
        for each in self._up[name]:
            limit = self.limit(each, kind)
            if units > limit:
                return QuotaLimit(each, kind, self._quotas[each, kind].nominal, limit, 0, units)
        return None

    def borrowed(self, name: str, kind: str) -> int:
        """Units used above nominal."""
        quota = self._quotas.get((name, kind))
        return max(self.used[name, kind] - quota.nominal, 0) if quota else 0

    def is_entitled(self, name: str, kind: str, units: int) -> bool:
        """True when `units` more stay within nominal in the budget (and it has a quota at all)."""
        quota = self._quotas.get((name, kind))
        return quota is not None and self.used[name, kind] + units <= quota.nominal

    def find_lent(self, name: str, kind: str) -> dict[str, int]:
        """What each child of a budget lends to its siblings.

        Borrowed units come first from the parent's own pool and borrowing, then from siblings in equal parts of what
        they could lend.
        """
        children = [each for each, path in self._up.items() if len(path) > 1 and path[1] == name]
        children = [each for each in sorted(children) if (each, kind) in self._quotas]
        idle = {each: self._idle_to_lend(each, kind) for each in children}
        borrowed = sum(self.borrowed(each, kind) for each in children)
        own = max(self._quotas[name, kind].nominal - sum(self._quotas[each, kind].nominal for each in children), 0)
        rest = max(borrowed - own - self.borrowed(name, kind), 0)
        return _split(rest, idle)

    def _idle_to_lend(self, name: str, kind: str) -> int:
        quota = self._quotas[name, kind]
        lend = quota.nominal if quota.lend is None else min(quota.lend, quota.nominal)
        return min(lend, max(quota.nominal - self.used[name, kind], 0))


def _split(amount: int, idle: Mapping[str, int]) -> dict[str, int]:
    total = sum(idle.values())
    amount = min(amount, total)
    parts = {name: amount * part // total if total else 0 for name, part in idle.items()}
    rest = amount - sum(parts.values())
    full = {}
    for name, part in parts.items():
        more = min(rest, idle[name] - part)
        full[name] = part + more
        rest -= more
    return full


def _names(tree: BudgetTree, name: str) -> tuple[str, ...]:
    return tuple(node.name for node in tree.path(name))


def _kinds_below(tree: BudgetTree, name: str) -> frozenset[str]:
    found = set(tree.by_name[name].quotas)
    for child in tree.children.get(name, ()):
        found |= _kinds_below(tree, child.name)
    return frozenset(found)
