"""Sweeps in the real queue, in virtual time: waiting for a turn, making room, going on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mlops.budgets.accounts import Account, load_accounts
from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.lease_types import Lease, LeaseRequest
from mlops.budgets.leases import LeaseBook
from mlops.budgets.replay import find_differences
from mlops.budgets.state import Node, Settings
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion
from mlops.clock import SECOND_US
from mlops.errors import Refusal
from mlops.units import Accelerators


@dataclass
class Rival:
    """Another driver that wants the whole machine; driven from the crew's clock."""

    queue: LeaseQueue
    priority: int
    lease: Lease | None = None
    log: list[str] = field(default_factory=list)

    def ask(self) -> None:
        answer = self.queue.reserve(
            LeaseRequest(
                key="rival", budget="research", accelerators=Accelerators("cpu", 1), window_seconds=600,
                grace_seconds=1, checkpoint_seconds=1, holder="rival", priority=self.priority, expected_seconds=60,
            )
        )  # fmt: skip
        if isinstance(answer, Refusal):
            self.log.append(answer.reasons[0].code)
        elif self.lease is None:
            self.lease = answer
            self.log.append("runs")

    def end(self) -> None:
        if self.lease is not None:
            token = self.lease.fencing_token
            self.queue.settle(self.lease.lease_id, fencing_token=token, ended_us=None, key="rival-ends")


@pytest.fixture
def queue(stage):
    rates = RateCard((RateVersion(0, {"cpu": 3_600_000}),))
    budgets = BudgetTree.of([BudgetNode("research", cap_micro_usd=10**12, priority=500)], rates=rates)
    apply_budgets(stage.ledger, budgets, who="test")
    rules = Settings(minimum_run_us=SECOND_US, leave_us=20 * SECOND_US)
    made = LeaseQueue(stage.ledger, LeaseBook(stage.ledger, stage.clock, stage.ids), settings=rules)
    made.report_nodes([Node("here", "cpu", 1_000)], kind="cpu")
    yield made
    with stage.ledger.read() as connection:
        assert find_differences(connection) == ()


def crew_with(stage, script: dict[float, Callable[[], None]], **options):
    """A crew whose clock runs a script: seconds to what happens then; a key below 0 happens each time."""
    crew = stage.crew(**options)
    started_us, todo, listen = stage.clock.monotonic_us(), dict(script), crew.next_events

    def next_events(*, timeout_seconds: float):
        elapsed = (stage.clock.monotonic_us() - started_us) / SECOND_US
        for at in sorted(todo):
            if elapsed >= at:
                todo.pop(at)() if at >= 0 else todo[at]()
        return listen(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    return crew


def states(outcome):
    return [(trial.number, trial.state, trial.metrics) for trial in outcome.trials]


@pytest.fixture
def undisturbed(stage, tmp_path):
    (tmp_path / "other").mkdir()
    other = type(stage)(tmp_path / "other")
    return states(other.run(other.spec(trials=4), other.crew()))


def test_a_sweep_waits_for_its_turn_and_says_why(stage, queue, undisturbed):
    rival = Rival(queue, priority=500)
    rival.ask()
    outcome = stage.run(stage.spec(trials=4), crew_with(stage, {8.0: rival.end}), queue)
    assert states(outcome) == undisturbed
    waits = [line for line in stage.lines if line.startswith("waits for its turn")]
    assert waits[-1] == "waits for its turn: needs 0.5 cpu on one node; 0 free, at most 0 on one"
    assert len(waits) == 2, "said when it changes, not each second"
    assert stage.clock.monotonic_us() >= 8 * SECOND_US


@pytest.mark.parametrize("is_reachable", [True, False])
def test_a_group_that_only_waits_makes_room_for_a_sweep_it_does_not_fit(stage, queue, is_reachable):
    kept: list[str] = []
    first = stage.spec(trials=2, groups=1, accelerators="1xcpu", idle="100s")
    stage.run(first, stage.crew(kept=kept), queue)
    alone = stage.clock.monotonic_us() / SECOND_US
    (name,) = kept
    crew = stage.crew(kept=kept if is_reachable else [])  # else its workers live in a cluster that this crew is not in
    crew.kind = "another"
    began_us = stage.clock.monotonic_us()
    stage.run(stage.spec(trials=2, groups=1, accelerators="1xcpu", seed=5), crew, queue)
    waited = (stage.clock.monotonic_us() - began_us) / SECOND_US
    assert waited == pytest.approx(alone) if is_reachable else waited > 60, "it starts at once where it can"
    assert ("adopt", name) not in crew.log


def test_a_sweep_makes_room_for_a_higher_class_and_goes_on_after_it(stage, queue, undisturbed):
    rival = Rival(queue, priority=900)
    script = {3.0: rival.ask, -1.0: lambda: rival.log and rival.ask(), 40.0: rival.end}
    crew = crew_with(stage, script, seconds=lambda trial, epoch: 2.0)
    outcome = stage.run(stage.spec(trials=4, max_failures=0), crew, queue)
    assert states(outcome) == undisturbed
    assert rival.log[0] == "units-busy" and "runs" in rival.log
    assert sum("makes room" in line for line in stage.lines) == 2, "each group once, and none starts in between"
    assert any(what[2].name == "YIELD" for kind, what in crew.log if kind == "answer")


def test_a_group_that_does_not_yield_in_time_is_ended_and_that_is_no_failure(stage, queue, undisturbed):
    rival = Rival(queue, priority=900)
    script = {3.0: rival.ask, -1.0: lambda: rival.log and rival.ask(), 60.0: rival.end}
    crew = crew_with(stage, script, accidents={(0, 0, 1): "hung"})
    crew.deaf = True
    outcome = stage.run(stage.spec(trials=4, max_failures=0), crew, queue)
    assert states(outcome) == undisturbed
    assert any("did not yield before the deadline" in line for line in stage.lines)
    assert "runs" in rival.log


def test_a_sweep_with_higher_priority_in_its_spec_goes_first(stage, queue, undisturbed):
    rival = Rival(queue, priority=500)
    rival.ask()
    script = {30.0: rival.end}
    outcome = stage.run(stage.spec(trials=4, priority="high"), crew_with(stage, script), queue)
    assert states(outcome) == undisturbed
    assert queue.find_order(rival.lease.lease_id) is None or rival.lease is not None


def test_what_waits_is_withdrawn_when_the_sweep_ends(stage, queue):
    stage.run(stage.spec(trials=1, groups=3), stage.crew(), queue)
    rival = Rival(queue, priority=0)
    rival.ask()
    assert rival.log == ["runs"]


def test_a_group_larger_than_any_machine_is_refused_at_once_and_nothing_waits(stage, queue):
    queue.report_nodes([Node("far", "h100", 8_000)], kind="h100")
    outcome = stage.run(stage.spec(accelerators="9xh100"), stage.crew(), queue)
    assert isinstance(outcome, Refusal)
    assert [reason.code for reason in outcome.reasons] == ["never-fits-cluster"]
    assert "needs 9 h100; the cluster has 1 nodes of at most 8" in outcome.render_text()
    assert stage.clock.monotonic_us() == 0, "at once"


def test_a_sweep_whose_own_spend_is_reached_ends_with_the_best_so_far(stage, queue, undisturbed):
    """0.5 CPU cost a cent a second: the cap pays for some windows, but not for fifty trials."""
    rates = RateCard((RateVersion(0, {"cpu": 72_000_000}),))
    budgets = BudgetTree.of([BudgetNode("research", cap_micro_usd=10**12, priority=500)], rates=rates)
    apply_budgets(stage.ledger, budgets, who="test")
    spec = stage.spec(trials=50, groups=1, lag=1, lease_window="10s", stop={"spend": "1 USD"})
    outcome = stage.run(spec, stage.crew(), queue)
    assert outcome.stopped == "the spend of 1.00 USD is reached"
    assert outcome.winner.state == "COMPLETE"
    assert 1 < len(outcome.trials) < 50
    assert {trial.state for trial in outcome.trials} <= {"COMPLETE", "PRUNED"}, "no trial is left open"
    with stage.ledger.read() as connection:
        limits = load_accounts(connection, (Account(f"sweep:{outcome.sweep_id}", 0, "once", 1_000_000),))
    assert 500_000 < limits[0].committed_micro_usd <= 1_000_000
