"""The rule: who starts, who makes room, who waits and why. Pure: the same state and time give the same actions.

Order between budgets: those within nominal first, then the lowest dominant share over weight, with recent use counted.
Order inside a budget: priority class, then predicted work / (1 + waiting / (10 x predicted time + 1 h)): short work
first, and no group waits for ever. A group that does not fit may shrink elastic ones, or evict (`preemption`); the
first that still waits for units gets a reservation, and later ones start only if they do not delay it (EASY backfill,
on predicted ends).
Leaves to others: paying (`leases`), doing (`admission`, mlops/training), predictions (`prediction`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from mlops.budgets.board import Board, BucketKey, Entry
from mlops.budgets.placement import find_placement, fits_empty
from mlops.budgets.preemption import Eviction, find_eviction
from mlops.budgets.reasons import explain_money, explain_never, explain_policy, explain_quota, explain_units
from mlops.budgets.reservation import Reservation, delays, make_reservation, must_yield
from mlops.budgets.state import Action, Placement, Preempt, Refuse, Resize, Start, State, Wait
from mlops.errors import Reason

_Candidate = tuple[int, float, int, str, BucketKey]
"""Minus priority, score, age, group, bucket: sorts in order of starting."""


def decide(state: State, now_us: int) -> tuple[Action, ...]:
    """Everything to do now, and for every group that waits the reason."""
    return decide_on(Board(state, now_us=now_us), now_us, with_reasons=True)


def decide_on(board: Board, now_us: int, *, with_reasons: bool) -> tuple[Action, ...]:
    """As `decide`, on a board that is kept between decisions; what it answers is done on the board already.

    Args:
        board: The working copy; changed.
        now_us: The time.
        with_reasons: Also answer with a `Wait` per waiting group; without, only the actions.
    """
    return _Pass(board, now_us, with_reasons=with_reasons).run()


@dataclass
class _Blocked:
    """Why a bucket of waiting groups did not start; the sentence is made when it is asked for."""

    entry: Entry
    reason: Reason
    until_us: int | None = None


@dataclass
class _Pass:
    board: Board
    now_us: int
    with_reasons: bool
    actions: list[Action] = field(default_factory=list)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    failed: dict[tuple[str, str, int], dict[int, int]] = field(default_factory=dict)
    """(Budget, kind, priority) to units that did not fit, with the least work among those that tried."""
    started: set[str] = field(default_factory=set)
    shares: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Shares along the path of a budget; forgotten when anything starts or stops."""
    has_evicted: bool = False
    evicted: list[Entry] = field(default_factory=list)
    """Victims that wait again and may start elsewhere in this pass."""

    def run(self) -> tuple[Action, ...]:
        self._sweep()
        while self.has_evicted:  # what was freed may let others start that were passed over before
            self.has_evicted = False
            self.actions = [each for each in self.actions if not isinstance(each, Wait | Refuse)]
            self.failed.clear()
            self.reservations.clear()
            self._sweep()
        self._grow()
        return tuple(self.actions)

    def _sweep(self) -> None:
        queues = {budget: self._sort(budget) for budget in self.board.waiting}
        heap = [(*self._budget_key(budget, queue[-1]), budget) for budget, queue in queues.items() if queue]
        heapq.heapify(heap)
        while heap:
            *_, budget = heapq.heappop(heap)
            queue = queues[budget]
            if not queue:
                continue
            current = self._budget_key(budget, queue[-1])
            if heap and (*current, budget) > heap[0]:
                heapq.heappush(heap, (*current, budget))
                continue
            self._try_first(budget, queue)
            back = self._requeue_evicted(queues)
            for each in {budget, *back}:
                if queues[each]:
                    heapq.heappush(heap, (*self._budget_key(each, queues[each][-1]), each))

    def _requeue_evicted(self, queues: dict[str, list[_Candidate]]) -> set[str]:
        for entry in self.evicted:
            assert entry.bucket is not None
            first = self.board.waiting[entry.budget][entry.bucket][0]
            _push(queues.setdefault(entry.budget, []), self._candidate(entry.bucket, first))
        budgets = {entry.budget for entry in self.evicted}
        self.evicted.clear()
        return budgets

    def _sort(self, budget: str) -> list[_Candidate]:
        now_us, floor_us = self.now_us, self.board.settings.ageing_floor_us
        factor = self.board.settings.ageing_factor
        queue = [  # as `_candidate`, written out: this runs for every waiting group
            (-b[0], b[4] * b[1] / (1 + (now_us - w[0][0]) / (factor * b[4] + floor_us)), w[0][0], w[0][1], b)
            for b, w in self.board.waiting[budget].items()
        ]
        queue.sort(reverse=True)
        return queue

    def _candidate(self, bucket: BucketKey, first: tuple[int, str]) -> _Candidate:
        priority, units, _, _, remaining_us, _ = bucket
        settings = self.board.settings
        waited_us = self.now_us - first[0]
        patience_us = settings.ageing_factor * remaining_us + settings.ageing_floor_us
        return -priority, remaining_us * units / (1 + waited_us / patience_us), first[0], first[1], bucket

    def _budget_key(self, budget: str, candidate: _Candidate) -> tuple[bool, tuple[float, ...]]:
        board, bucket = self.board, candidate[4]
        kind, units = bucket[3], bucket[1]
        quota = board.quota.quota(budget, kind)
        is_borrowing = quota is not None and not board.quota.is_entitled(budget, kind, units)
        shares = self.shares.get(budget)
        if shares is None:
            shares = self.shares[budget] = tuple(self._share(name) for name in reversed(board.quota.path(budget)))
        return is_borrowing, shares

    def _share(self, name: str) -> float:
        """Dominant share over weight: the largest part of any kind in use, plus recent use."""
        board = self.board
        share, weight = 0.0, 1.0
        for kind, total in board.total.items():
            quota = board.quota.quota(name, kind)
            if quota is not None and total:
                share = max(share, board.quota.used[name, kind] / total * 1000 / quota.weight)
                weight = quota.weight / 1000
        return share + board.recent_use.get(name, 0.0) / weight

    def _try_first(self, budget: str, queue: list[_Candidate]) -> None:
        candidate = queue.pop()
        bucket = candidate[4]
        buckets = self.board.waiting[budget]
        entry = self.board.entries[candidate[3]]
        if entry.status != "waiting":
            return  # stood twice in the queue
        while self._is_hopeless(entry):
            if self.with_reasons:
                self._block_bucket(budget, bucket, self._explain(entry))
            if not queue:
                return
            candidate = queue.pop()
            bucket, entry = candidate[4], self.board.entries[candidate[3]]
        if entry.status != "waiting":
            return
        blocked = self._try(entry)
        if blocked is not None:
            self._block_bucket(budget, bucket, blocked)
            return
        waiting = buckets.get(bucket)
        if waiting:
            _push(queue, self._candidate(bucket, waiting[0]))

    def _is_hopeless(self, entry: Entry) -> bool:
        """A group at least as strong and no larger has failed in this pass."""
        failed = self.failed.get((entry.budget, entry.kind, entry.priority))
        if not failed:
            return False
        smallest, work = entry.group.minimum_units or entry.units, entry.remaining_us * entry.units
        for units, least in failed.items():  # noqa: SIM110 - any() is slower, and this runs for every waiting group
            if units <= smallest and least <= work:
                return True
        return False

    def _try(self, entry: Entry) -> _Blocked | None:
        board = self.board
        names = board.nodes_of.get(entry.kind, ())
        smallest = entry.group.smallest_units
        is_fitting = board.can_fit.get((entry.kind, smallest))
        if is_fitting is None:
            is_fitting = board.can_fit[entry.kind, smallest] = fits_empty(board.nodes, names, smallest)
        never = explain_never(board, entry, is_fitting=is_fitting)
        if never is not None:
            return _Blocked(entry, never, until_us=-1)
        policy = explain_policy(board, entry)
        if policy is not None:
            return _Blocked(entry, policy)
        unpaid = board.find_unpaid(entry)
        if unpaid is not None:
            return _Blocked(entry, explain_money(board, entry, unpaid))
        for units in _sizes(entry):
            if board.quota.find_limit(entry.budget, entry.kind, units) is not None:
                continue
            placement = find_placement(board.nodes, board.free, names, units)
            if placement is not None:
                late = self._delays_reservation(entry, placement, units=units)
                if late is None:
                    self._start(entry, placement, units=units)
                    return None
                return _Blocked(entry, late)
        return self._make_room(entry, smallest)

    def _delays_reservation(self, entry: Entry, placement: Placement, *, units: int) -> Reason | None:
        reservation = self.reservations.get(entry.kind)
        if reservation is None:
            return None
        return delays(self.board, reservation, entry, placement, units=units, now_us=self.now_us)

    def _make_room(self, entry: Entry, units: int) -> _Blocked | None:
        board = self.board
        if not self._is_served_soon(entry):
            if board.quota.find_limit(entry.budget, entry.kind, units) is None:
                shrunk = self._shrink(entry, units)
                if shrunk is not None:
                    self._start(entry, shrunk, units=units)
                    return None
            eviction = find_eviction(board, entry, units=units, now_us=self.now_us)
            if eviction is not None:
                return self._evict(entry, eviction, units=units)
        blocked = self._explain(entry)
        known = self.failed.setdefault((entry.budget, entry.kind, entry.priority), {})
        known[units] = min(known.get(units, 1 << 80), entry.remaining_us * entry.units)
        if board.quota.find_limit(entry.budget, entry.kind, units) is None and entry.kind not in self.reservations:
            reservation = make_reservation(board, entry, units=units, now_us=self.now_us)
            if reservation is not None:
                self.reservations[entry.kind] = reservation
                blocked.until_us = reservation.starts_us
        return blocked

    def _is_served_soon(self, entry: Entry) -> bool:
        """Groups that were asked to leave already free enough for it."""
        board = self.board
        if not board.leaving.get(entry.kind) or entry.kind in self.reservations:
            return False
        leaving = [each for each in board.running[entry.kind].values() if each.status == "leaving"]
        for each in leaving:
            board.lift(each)
        units = entry.group.smallest_units
        fits = board.quota.find_limit(entry.budget, entry.kind, units) is None and (
            find_placement(board.nodes, board.free, board.nodes_of[entry.kind], units) is not None
        )
        for each in leaving:
            board.put_back(each)
        return fits

    def _evict(self, entry: Entry, eviction: Eviction, *, units: int) -> _Blocked | None:
        board, now_us = self.board, self.now_us
        leaves_by_us = now_us + board.settings.leave_us
        for victim in eviction.victims:
            why = "priority" if victim.priority < entry.priority else "less remaining work"
            if victim.budget != entry.budget:
                why = f"{entry.budget} takes back what it lent to {victim.budget}"
            reason = Reason("preempted", f"makes room for {entry.group.group_id}: {why}")
            self.actions.append(Preempt(victim.group.group_id, entry.group.group_id, leaves_by_us, reason))
        if board.settings.leave_us > 0:
            for victim in eviction.victims:
                board.order_leave(victim, leaves_by_us=leaves_by_us)
            reservation = Reservation(entry, units, leaves_by_us, eviction.placement)
            self.reservations.setdefault(entry.kind, reservation)
            return _Blocked(entry, self._explain(entry).reason, until_us=leaves_by_us)
        for victim in eviction.victims:
            board.stop(victim, now_us=now_us, evicted_by=entry.group.group_id)
            self.evicted.append(victim)
        self.shares.clear()
        self.has_evicted = True
        self._start(entry, eviction.placement, units=units)
        return None

    def _start(self, entry: Entry, placement: Placement, *, units: int) -> None:
        reservation = self.reservations.get(entry.kind)
        is_backfill = reservation is not None
        if reservation and must_yield(self.board, reservation, entry, now_us=self.now_us):
            entry.yields_to, entry.yields_from_us = reservation.head.group.group_id, reservation.starts_us
        self.board.start(entry, placement, now_us=self.now_us, units=units)
        self.shares.clear()
        self.started.add(entry.group.group_id)
        self.actions.append(
            Start(
                entry.group.group_id,
                placement,
                is_backfill=is_backfill,
                yields_to=entry.yields_to,
                yields_from_us=entry.yields_from_us,
            )
        )

    def _explain(self, entry: Entry) -> _Blocked:
        if not self.with_reasons:
            return _Blocked(entry, _UNEXPLAINED)
        reason = explain_quota(self.board, entry) or explain_units(self.board, entry, now_us=self.now_us)
        return _Blocked(entry, reason)

    def _block_bucket(self, budget: str, bucket: BucketKey, blocked: _Blocked) -> None:
        """The same answer for every group that differs in age only."""
        if blocked.until_us != -1 and not self.with_reasons:
            return
        for _, group_id in self.board.waiting[budget].get(bucket, ()):
            if blocked.until_us == -1:
                self.actions.append(Refuse(group_id, blocked.reason))
            else:
                self.actions.append(Wait(group_id, blocked.reason, blocked.until_us))

    def _shrink(self, entry: Entry, units: int) -> Placement | None:
        """Take from elastic groups what they can spare, on one node; the place it makes, or None."""
        board = self.board
        for name in board.nodes_of.get(entry.kind, ()):
            need = units - board.free[name]
            spare = [(each, _spare(each)) for each in board.on_node[name].values() if self._may_shrink(entry, each)]
            if board.nodes[name].is_draining or board.nodes[name].units < units or need > sum(s for _, s in spare):
                continue
            for each, most in sorted(spare, key=lambda pair: (pair[0].priority, pair[0].group.group_id)):
                if need <= 0:
                    break
                step = each.group.step_units
                taken = min(-(-need // step) * step, most)
                need -= taken
                placement = ((name, each.units - taken),)
                reason = Reason("shrunk", f"makes room for {entry.group.group_id}")
                board.resize(each, placement, now_us=self.now_us)
                self.actions.append(Resize(each.group.group_id, placement, reason))
            return ((name, units),)
        return None

    def _may_shrink(self, entry: Entry, other: Entry) -> bool:
        return (
            other.budget == entry.budget
            and other.priority <= entry.priority
            and other.status == "running"
            and _spare(other) > 0
            and self.now_us - other.started_us >= self.board.settings.minimum_run_us
        )

    def _grow(self) -> None:
        """Give free units to elastic groups where nobody waits for that kind."""
        board = self.board
        if not board.elastic:
            return
        wanted = {bucket[3] for buckets in board.waiting.values() for bucket in buckets}
        for kind, running in board.running.items():
            if kind in wanted:
                continue
            for entry in sorted(running.values(), key=lambda each: each.group.group_id):
                self._grow_one(entry)

    def _grow_one(self, entry: Entry) -> None:
        board, group = self.board, entry.group
        if not group.step_units or entry.status != "running" or len(entry.placement) != 1:
            return
        name = entry.placement[0][0]
        most = min(group.maximum_units - entry.units, board.free[name]) // group.step_units * group.step_units
        if most <= 0 or group.group_id in self.started or board.quota.find_limit(entry.budget, entry.kind, most):
            return
        placement = ((name, entry.units + most),)
        board.resize(entry, placement, now_us=self.now_us)
        self.actions.append(Resize(group.group_id, placement, Reason("grown", "units are free and nobody waits")))


def _push(queue: list[_Candidate], candidate: _Candidate) -> None:
    """Into a queue whose first to start stands last."""
    queue.append(candidate)
    if len(queue) > 1 and candidate > queue[-2]:
        queue.sort(reverse=True)


def _spare(entry: Entry) -> int:
    group = entry.group
    if not group.step_units or len(entry.placement) != 1:
        return 0
    return max(entry.units - group.minimum_units, 0) // group.step_units * group.step_units


def _sizes(entry: Entry) -> range | tuple[int, ...]:
    """Units to try, largest first."""
    group = entry.group
    if not group.step_units:
        return (entry.units,)
    return range(entry.units, group.smallest_units - 1, -group.step_units)


_UNEXPLAINED = Reason("waiting", "reasons were not asked for")
