"""The rule, whatever happens: random groups and ends on a small cluster (invariants 5-9, 11-13 and 15)."""

import os
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops.budgets.board import Board
from mlops.budgets.decide import decide, decide_on
from mlops.budgets.placement import find_placement
from mlops.budgets.state import Group, Node, Preempt, Refuse, Settings, Start, State, Wait
from mlops.budgets.tree import BudgetNode, BudgetTree, Quota, RateCard
from mlops.clock import SECOND_US

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
TREE = BudgetTree.of(
    [
        BudgetNode("company", quotas={"gpu": Quota(16_000)}),
        BudgetNode("a", parent="company", quotas={"gpu": Quota(8_000, borrow=8_000)}),
        BudgetNode("b", parent="company", quotas={"gpu": Quota(4_000, borrow=4_000, lend=3_000)}),
        BudgetNode("c", parent="company", quotas={"gpu": Quota(4_000, borrow=None, weight=2_000)}),
    ],
    rates=RateCard(()),
)
NODES = (Node("n1", "gpu", 8_000), Node("n2", "gpu", 8_000))


class World:
    """A cluster that does what the rule says, with exact predictions; checks every step."""

    def __init__(self, *, rule_settings: Settings, nodes=NODES, tree=TREE):
        self.settings, self.nodes, self.tree = rule_settings, nodes, tree
        self.now_us = 0
        self.groups: dict[str, Group] = {}
        self.log: list[tuple[int, object]] = []
        self.ended: list[str] = []
        self.evictions_since_event: list[tuple[str, str]] = []

    def state(self) -> State:
        return State(tree=self.tree, nodes=self.nodes, groups=tuple(self.groups.values()), settings=self.settings)

    def step(self, *, is_external: bool) -> None:
        if is_external:
            self.evictions_since_event.clear()
        before = self.state()
        actions = decide(before, self.now_us)
        shuffled = list(before.groups)
        random.Random(self.now_us).shuffle(shuffled)
        assert decide(replace(before, groups=tuple(shuffled)), self.now_us) == actions
        for action in actions:
            self.apply(action, before)
        self.check(actions)

    def apply(self, action, before: State) -> None:
        self.log.append((self.now_us, action))
        if isinstance(action, Start):
            group = self.groups[action.group_id]
            assert group.status == "waiting"
            self.groups[action.group_id] = replace(
                group, status="running", placement=action.placement, started_us=self.now_us,
                checkpointed_us=self.now_us, waited_us=group.waited_us + self.now_us - group.waiting_since_us,
                yields_to=action.yields_to, yields_from_us=action.yields_from_us,
            )  # fmt: skip
        elif isinstance(action, Preempt):
            victim, winner = self.groups[action.group_id], self.groups[action.in_favour_of]
            assert self.now_us - victim.started_us >= self.settings.minimum_run_us, "inside its minimum run time"
            if victim.budget == winner.budget:
                assert victim.priority <= winner.priority, "a higher class made room"
                if not self.settings.is_preempting_by_work:
                    assert victim.priority < winner.priority, "an equal class made room"
            assert (action.in_favour_of, action.group_id) not in self.evictions_since_event, "they evict each other"
            self.evictions_since_event.append((action.group_id, action.in_favour_of))
            asked = replace(victim, evicted_by=(victim.evicted_by & set(self.groups)) | {action.in_favour_of})
            if self.settings.leave_us:
                self.groups[action.group_id] = replace(asked, status="leaving", leaves_by_us=action.leaves_by_us)
            else:
                self.groups[action.group_id] = self._leave(asked)
        elif isinstance(action, Refuse):
            del self.groups[action.group_id]

    def _leave(self, group: Group) -> Group:
        return replace(group, status="waiting", placement=(), waiting_since_us=self.now_us)

    def check(self, actions) -> None:
        used_on, used_by = dict.fromkeys((node.name for node in self.nodes), 0), {}
        for group in self.groups.values():
            held = sum(units for _, units in group.placement)
            assert held in (0, group.units), "part of a group"
            used_by[group.budget] = used_by.get(group.budget, 0) + held
            for name, units in group.placement:
                used_on[name] += units
        for node in self.nodes:
            assert used_on[node.name] <= node.units, "more than the node has"
        borrowed = 0
        for name, used in used_by.items():
            quota = self.tree.by_name[name].quotas["gpu"]
            assert quota.borrow is None or used <= quota.nominal + quota.borrow, "above nominal + borrow"
            borrowed += max(used - quota.nominal, 0)
        board = Board(self.state(), now_us=self.now_us)
        lent = board.quota.find_lent("company", "gpu")
        assert sum(lent.values()) == borrowed
        for name, amount in lent.items():
            quota = self.tree.by_name[name].quotas["gpu"]
            assert amount <= (quota.nominal if quota.lend is None else quota.lend)
        waiting = {action.group_id: action for action in actions if isinstance(action, Wait)}
        for group in self.groups.values():
            if group.status == "waiting":
                assert group.group_id in waiting and waiting[group.group_id].reason.text
                is_free = board.quota.find_limit(group.budget, "gpu", group.units) is None and (
                    find_placement(board.nodes, board.free, board.nodes_of["gpu"], group.units) is not None
                )
                if is_free:
                    assert waiting[group.group_id].reason.code == "reserved-ahead", "waits though all it needs is free"

    def pass_time(self, until_us: int) -> None:
        elapsed = until_us - self.now_us
        self.now_us = until_us
        for group in list(self.groups.values()):
            if group.status == "leaving" and until_us >= group.leaves_by_us - self.settings.leave_us // 2:
                self.groups[group.group_id] = self._leave(group)  # some time before it must
            elif group.status != "waiting":
                left = group.remaining_us - elapsed
                if left <= 0:
                    del self.groups[group.group_id]
                    self.ended.append(group.group_id)
                else:
                    self.groups[group.group_id] = replace(group, remaining_us=left, checkpointed_us=self.now_us)

    def next_end(self) -> int | None:
        ends = [self.now_us + group.remaining_us for group in self.groups.values() if group.status != "waiting"]
        leaves = [
            group.leaves_by_us - self.settings.leave_us // 2
            for group in self.groups.values()
            if group.status == "leaving"
        ]
        return min([*ends, *leaves], default=None)


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([1_000, 2_000, 4_000, 8_000]),
        st.integers(1, 600),
        st.sampled_from([100, 500, 900]),
        st.integers(0, 200),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.parametrize("leave_s", [0, 30], ids=["they leave at once", "they are given time"])
@pytest.mark.parametrize("is_by_work", [True, False])
@settings(max_examples=40 * SCALE, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrivals=ARRIVALS)
def test_every_step_keeps_the_invariants_and_every_group_ends(arrivals, is_by_work, leave_s):
    rule_settings = Settings(
        minimum_run_us=20 * SECOND_US, leave_us=leave_s * SECOND_US, restart_us=0, is_preempting_by_work=is_by_work
    )
    world = World(rule_settings=rule_settings)
    arriving_at = 0
    expected = set()
    for number, (budget, units, seconds, priority, gap) in enumerate(arrivals):
        arriving_at += gap * SECOND_US
        while (end_us := world.next_end()) is not None and end_us <= arriving_at:
            world.pass_time(end_us)
            world.step(is_external=True)
        world.pass_time(arriving_at)
        name = f"g{number:02d}"
        expected.add(name)
        world.groups[name] = Group(
            name, budget, "gpu", units, seconds * SECOND_US, world.now_us, priority=priority,
            waiting_since_us=world.now_us, keeps_work=True,
        )  # fmt: skip
        world.step(is_external=True)
        world.step(is_external=False)
    for _ in range(40 * len(arrivals) + 40):
        end_us = world.next_end()
        if end_us is None:
            break
        wake_us = world.now_us + world.settings.minimum_run_us
        world.pass_time(min(end_us, wake_us))
        world.step(is_external=end_us <= wake_us)
    too_large = {action.group_id for _, action in world.log if isinstance(action, Refuse)}
    assert set(world.ended) | too_large == expected, "a group never ended"


@settings(max_examples=60 * SCALE, deadline=None)
@given(arrivals=ARRIVALS)
def test_a_board_that_is_kept_decides_like_one_built_anew(arrivals):
    rule_settings = Settings(minimum_run_us=0, restart_us=0)
    kept = Board(State(TREE, NODES, (), settings=rule_settings), now_us=0)
    groups: dict[str, Group] = {}
    for number, (budget, units, seconds, priority, gap) in enumerate(arrivals):
        now_us = (number + 1) * (gap + 1) * SECOND_US // 100
        group = Group(
            f"g{number:02d}", budget, "gpu", units, seconds * SECOND_US * 1_000, now_us, priority=priority,
            waiting_since_us=now_us, keeps_work=True,
        )  # fmt: skip
        groups[group.group_id] = group
        fresh = Board(State(TREE, NODES, tuple(_snapshot(kept, now_us)), settings=rule_settings), now_us=now_us)
        fresh.add(group, now_us=now_us)
        kept.add(group, now_us=now_us)
        assert decide_on(kept, now_us, with_reasons=True) == decide_on(fresh, now_us, with_reasons=True)
        for entry in list(kept.entries.values()):
            if number % 3 == 2 and entry.status == "running":
                kept.remove(entry.group.group_id)
                break


def _snapshot(board: Board, now_us: int):
    for entry in board.entries.values():
        is_waiting = entry.status == "waiting"
        yield replace(
            entry.group, status=entry.status, placement=entry.placement, units=entry.units,
            remaining_us=board.remaining(entry, now_us), started_us=entry.started_us,
            checkpointed_us=entry.checkpointed_us, yields_to=entry.yields_to, yields_from_us=entry.yields_from_us,
            waiting_since_us=entry.waiting_us if is_waiting else 0, waited_us=0 if is_waiting else -entry.waiting_us,
        )  # fmt: skip


@settings(max_examples=60 * SCALE, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
def test_brute_force_agrees_on_who_can_run_together(sizes, lengths):
    """With at most 4 groups x 4 accelerators no admissible group is left out beside what was started."""
    tree = BudgetTree.of([BudgetNode("x")], rates=RateCard(()))
    groups = tuple(
        Group(f"g{number}", "x", "gpu", size * 1_000, lengths[number] * SECOND_US, 0)
        for number, size in enumerate(sizes)
    )
    actions = decide(State(tree, (Node("n", "gpu", 4_000),), groups), 0)
    started = {action.group_id for action in actions if isinstance(action, Start)}
    used = sum(group.units for group in groups if group.group_id in started)
    order = sorted(groups, key=lambda group: (group.remaining_us * group.units, group.submitted_us, group.group_id))
    blocked = {a.group_id for a in actions if isinstance(a, Wait) and a.reason.code == "reserved-ahead"}
    best, free = set(), 4_000
    for group in order:
        if group.units <= free and group.group_id not in blocked:  # what a blocked one leaves, a shorter one may take
            best.add(group.group_id)
            free -= group.units
    assert used <= 4_000
    assert started == best


def test_backfill_never_delays_the_head():
    """The head needs the whole node at 100 s; short work may go first, long work of its rank may not."""
    tree = BudgetTree.of([BudgetNode("x")], rates=RateCard(()))
    strict = Settings(minimum_run_us=0, restart_us=0, is_preempting_by_work=False)
    running = Group("r", "x", "gpu", 4_000, 100 * SECOND_US, 0, status="running", placement=(("n", 4_000),))
    head = Group("head", "x", "gpu", 8_000, 10 * SECOND_US, 0)
    fits = Group("fits", "x", "gpu", 4_000, 99 * SECOND_US, 0)
    late = Group("late", "x", "gpu", 4_000, 101 * SECOND_US, 0)
    nodes = (Node("n", "gpu", 8_000),)

    def started(*groups):
        actions = decide(State(tree, nodes, (running, *groups), settings=strict), 0)
        return {action.group_id for action in actions if isinstance(action, Start)}

    assert started(head, fits) == {"fits"}
    assert started(head, late) == set()


def test_a_tenant_within_nominal_takes_back_what_it_lent_and_no_more():
    groups = [
        Group(
            f"b{n}", "a", "gpu", 4_000, 1_000 * SECOND_US, 0, status="running", placement=((f"n{n // 2 + 1}", 4_000),)
        )
        for n in range(4)
    ]
    wants = Group("mine", "c", "gpu", 4_000, 100 * SECOND_US, 0, waiting_since_us=0)
    settings_ = Settings(minimum_run_us=60 * SECOND_US, leave_us=30 * SECOND_US)
    lending = replace(TREE.by_name["b"], quotas={"gpu": Quota(4_000, borrow=4_000)})
    tree = BudgetTree.of([*(node for node in TREE.nodes if node.name != "b"), lending], rates=RateCard(()))
    state = State(tree, NODES, (*groups, wants), settings=settings_)
    early = [action for action in decide(state, 59 * SECOND_US) if isinstance(action, Preempt)]
    assert early == []
    (order,) = [action for action in decide(state, 60 * SECOND_US) if isinstance(action, Preempt)]
    assert order.leaves_by_us == 90 * SECOND_US
    text = next(action.reason.text for action in decide(state, 59 * SECOND_US) if isinstance(action, Wait))
    assert (
        text.startswith("needs 4 gpu; company uses 16 of 16 nominal") and "8 lent to a, reclaim in at most 90 s" in text
    )
