"""The rule's working copy of a state: free units per node, use per budget, who runs, who waits; changes are cheap.

A caller that keeps a board between decisions (simulation, a process that follows the ledger) gets the same answers as
one that builds it anew. Leaves to others: whom to start or stop (`decide`), where (`placement`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from mlops.budgets.quota import QuotaBoard
from mlops.budgets.state import Group, Node, Placement, State

BucketKey = tuple[int, int, int, str, int, bool]
"""Priority, units, smallest units, kind, remaining time, is_serving: groups that differ in age only."""


class Entry:
    """A group on the board."""

    __slots__ = (
        "bucket",
        "budget",
        "checkpointed_us",
        "ends_us",
        "group",
        "kind",
        "leaves_by_us",
        "placement",
        "priority",
        "remaining_us",
        "started_us",
        "status",
        "units",
        "waiting_us",
        "yields_from_us",
        "yields_to",
    )  # fmt: skip

    def __init__(self, group: Group) -> None:
        self.group = group
        self.budget = group.budget
        self.kind = group.kind
        self.units = group.units
        self.priority = group.priority
        self.remaining_us = group.remaining_us
        self.status = group.status
        self.placement = group.placement
        self.started_us = group.started_us
        self.checkpointed_us = group.checkpointed_us
        self.ends_us = 0
        self.leaves_by_us = group.leaves_by_us
        self.waiting_us = (group.waiting_since_us if group.status == "waiting" else 0) - group.waited_us
        """While it waits: when it would have come had it waited ever since; while it runs: minus its waiting time."""
        self.yields_to, self.yields_from_us = group.yields_to, group.yields_from_us
        self.bucket: BucketKey | None = None

    @property
    def frees_us(self) -> int:
        """When its units become free: at its predicted end, or sooner when it was asked to leave."""
        return min(self.ends_us, self.leaves_by_us) if self.status == "leaving" else self.ends_us


class Board:
    """Use of nodes, quotas and money, with the groups that cause it."""

    def __init__(self, state: State, *, now_us: int) -> None:
        self.tree = state.tree
        self.settings = state.settings
        self.quota = QuotaBoard(state.tree)
        self.nodes: dict[str, Node] = {node.name: node for node in sorted(state.nodes, key=lambda node: node.name)}
        self.nodes_of: dict[str, list[str]] = {}
        for node in self.nodes.values():
            self.nodes_of.setdefault(node.kind, []).append(node.name)
        self.free: dict[str, int] = {name: 0 if node.is_draining else node.units for name, node in self.nodes.items()}
        self.total: dict[str, int] = {
            kind: sum(self.nodes[name].units for name in names) for kind, names in self.nodes_of.items()
        }
        self.running: dict[str, dict[str, Entry]] = {}
        """Kind to running (and leaving) groups by id."""
        self.running_in: dict[tuple[str, str], dict[str, Entry]] = {}
        """The same per budget and kind."""
        self.leaving: dict[str, int] = {}
        """Kind to the number of groups that were asked to leave."""
        self.elastic = 0
        """Running groups that could shrink or grow."""
        self.can_fit: dict[tuple[str, int], bool] = {}
        """Kind and units to whether an empty cluster has room; filled when first asked."""
        self.on_node: dict[str, dict[str, Entry]] = {name: {} for name in self.nodes}
        self.entries: dict[str, Entry] = {}
        self.waiting: dict[str, dict[BucketKey, list[tuple[int, str]]]] = {}
        """Budget to buckets; each by age."""
        self.money_left: dict[str, int] = dict(state.money_left)
        self.actions: Mapping[str, frozenset[str]] = state.actions
        self.recent_use: dict[str, float] = dict(state.recent_use)
        for group in sorted(state.groups, key=lambda group: (group.submitted_us, group.group_id)):
            self.add(group, now_us=now_us)

    def add(self, group: Group, *, now_us: int) -> Entry:
        """Put a group on the board as it is."""
        entry = Entry(group)
        self.entries[group.group_id] = entry
        if group.status == "waiting":
            self._enqueue(entry)
        else:
            self._occupy(entry, 1)
            entry.ends_us = group.remaining_us + now_us
        return entry

    def remove(self, group_id: str) -> None:
        """Take a group off: it ended, failed or was cancelled."""
        entry = self.entries.pop(group_id)
        if entry.status == "waiting":
            self._dequeue(entry)
        else:
            self._occupy(entry, -1)

    def start(self, entry: Entry, placement: Placement, *, now_us: int, units: int) -> None:
        """A waiting group runs from now on."""
        self._dequeue(entry)
        if units != entry.units:
            entry.remaining_us = entry.remaining_us * entry.units // units
            entry.units = units
        entry.status, entry.placement = "running", placement
        entry.started_us = entry.checkpointed_us = now_us
        entry.ends_us = now_us + self.settings.restart_us + entry.remaining_us
        entry.waiting_us -= now_us  # from here on: minus the time it has waited so far
        self._occupy(entry, 1)
        self._pay(entry)

    def stop(self, entry: Entry, *, now_us: int, evicted_by: str) -> None:
        """A running group waits from now on, with what it has not done or has lost."""
        self._occupy(entry, -1)
        left_us = self.remaining(entry, now_us)
        if not entry.group.keeps_work:
            left_us += now_us - entry.checkpointed_us
        full = entry.group.maximum_units or entry.group.units
        entry.remaining_us = max(min(left_us * entry.units // full, entry.remaining_us), 1)
        entry.status, entry.placement, entry.yields_to = "waiting", (), ""
        entry.waiting_us += now_us
        entry.group = _with_evictor(entry.group, evicted_by)
        entry.units = full
        self._enqueue(entry)

    def order_leave(self, entry: Entry, *, leaves_by_us: int) -> None:
        """A running group was asked to leave; it holds its units until it has."""
        entry.status, entry.leaves_by_us = "leaving", leaves_by_us
        self.leaving[entry.kind] = self.leaving.get(entry.kind, 0) + 1

    def resize(self, entry: Entry, placement: Placement, *, now_us: int) -> None:
        """An elastic group goes on with other units."""
        units = sum(count for _, count in placement)
        self._occupy(entry, -1)
        entry.ends_us = now_us + max(entry.ends_us - now_us, 0) * entry.units // units
        entry.placement, entry.units = placement, units
        self._occupy(entry, 1)

    def predict(self, entry: Entry, *, remaining_us: int, now_us: int) -> None:
        """A new prediction of the time left."""
        if entry.status != "waiting":
            entry.ends_us = now_us + remaining_us
            entry.remaining_us = remaining_us
        elif remaining_us != entry.remaining_us:
            self._dequeue(entry)
            entry.remaining_us = remaining_us
            self._enqueue(entry)

    def lift(self, entry: Entry) -> None:
        """Take the units of a running group away, to try what would fit then; `put_back` undoes it."""
        self._occupy(entry, -1)

    def put_back(self, entry: Entry) -> None:
        """Undo `lift`."""
        self._occupy(entry, 1)

    def remaining(self, entry: Entry, now_us: int) -> int:
        """Predicted time left."""
        return entry.remaining_us if entry.status == "waiting" else max(entry.ends_us - now_us, 1)

    def cost_of_start(self, entry: Entry) -> int:
        """Micro-USD that a start pays ahead."""
        group = entry.group
        return -(-group.price_micro_usd_per_hour * group.prepaid_us // 3_600_000_000)

    def find_unpaid(self, entry: Entry) -> str | None:
        """The first budget on the way up that cannot pay a start."""
        if not self.money_left:
            return None
        cost = self.cost_of_start(entry)
        for name in self.quota.path(entry.budget):
            left = self.money_left.get(name)
            if left is not None and left < cost:
                return name
        return None

    def _pay(self, entry: Entry) -> None:
        if self.money_left:
            cost = self.cost_of_start(entry)
            for name in self.quota.path(entry.budget):
                if name in self.money_left:
                    self.money_left[name] -= cost

    def _occupy(self, entry: Entry, sign: int) -> None:
        group_id = entry.group.group_id
        self.elastic += sign * (entry.group.step_units > 0)
        if entry.status == "leaving":
            self.leaving[entry.kind] = self.leaving.get(entry.kind, 0) + sign
        self.quota.use(entry.budget, entry.kind, sign * entry.units)
        running = self.running.setdefault(entry.kind, {})
        own = self.running_in.setdefault((entry.budget, entry.kind), {})
        if sign > 0:
            running[group_id] = own[group_id] = entry
        else:
            del running[group_id], own[group_id]
        for name, units in entry.placement:
            if name not in self.nodes:
                continue  # the node is gone; its groups are about to be
            if not self.nodes[name].is_draining:
                self.free[name] -= sign * units
            if sign > 0:
                self.on_node[name][group_id] = entry
            else:
                del self.on_node[name][group_id]

    def _enqueue(self, entry: Entry) -> None:
        group = entry.group
        entry.bucket = (
            entry.priority, entry.units, group.smallest_units, entry.kind, entry.remaining_us, group.is_serving
        )  # fmt: skip
        waiting = self.waiting.setdefault(entry.budget, {}).setdefault(entry.bucket, [])
        insort(waiting, (entry.waiting_us, group.group_id))

    def _dequeue(self, entry: Entry) -> None:
        assert entry.bucket is not None
        buckets = self.waiting[entry.budget]
        waiting = buckets[entry.bucket]
        waiting.remove((entry.waiting_us, entry.group.group_id))
        if not waiting:
            del buckets[entry.bucket]
        entry.bucket = None


def _with_evictor(group: Group, evicted_by: str) -> Group:
    fields = {name: getattr(group, name) for name in Group.__dataclass_fields__}
    return Group(**{**fields, "evicted_by": group.evicted_by | {evicted_by}})
