"""The queue on the ledger: submit, start with a lease, leave when asked, come back, survive a driver that vanished."""

from pathlib import Path

import pytest

from mlops.budgets.admission import Admission, GroupRequest, load_queue
from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_rows import list_live
from mlops.budgets.leases import LeaseBook
from mlops.budgets.opening import settle_expired
from mlops.budgets.replay import find_differences
from mlops.budgets.state import Node, Settings
from mlops.budgets.tree import BudgetNode, BudgetTree, Quota, RateCard, RateVersion
from mlops.clock import SECOND_US, FakeClock
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.units import Accelerators


@pytest.fixture
def queue(tmp_path: Path):
    clock = FakeClock()
    ledger = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), clock)
    nodes = [
        BudgetNode("company", cap_micro_usd=10**9, quotas={"gpu": Quota(8_000)}),
        BudgetNode("a", parent="company", quotas={"gpu": Quota(4_000, borrow=4_000)}),
        BudgetNode("b", parent="company", quotas={"gpu": Quota(4_000, borrow=4_000)}),
    ]
    apply_budgets(ledger, BudgetTree.of(nodes, rates=RateCard((RateVersion(0, {"gpu": 3_600_000}),))), who="test")
    settings = Settings(minimum_run_us=10 * SECOND_US, leave_us=20 * SECOND_US)
    admission = Admission(ledger, LeaseBook(ledger, clock, CountingIds()), settings=settings)
    admission.report_nodes([Node("n1", "gpu", 8_000)])
    yield admission, ledger, clock
    with ledger.read() as connection:
        assert find_differences(connection) == ()
    ledger.close()


def request(group_id: str, budget: str, count: float, **changes) -> GroupRequest:
    fields = {"group_id": group_id, "budget": budget, "holder": "driver", "expected_seconds": 600.0, **changes}
    return GroupRequest(accelerators=Accelerators("gpu", count), **fields)


def test_a_group_starts_with_a_lease_and_ends_with_a_refund(queue):
    admission, _, clock = queue
    status = admission.submit(request("g1", "a", 4))
    assert (status.status, status.placement) == ("running", (("n1", 4_000),))
    assert admission.submit(request("g1", "a", 4)) == status, "submitted once"
    lease = admission.find_lease("g1")
    clock.advance(5)
    assert admission.leave("g1", fencing_token=lease.fencing_token, is_done=True, ended_us=clock.now_us()) is None
    assert admission.leave("g1", fencing_token=lease.fencing_token, is_done=True, ended_us=None) is not None
    assert admission.poll("g1").status == "ended"


def test_a_group_whose_driver_stopped_asking_leaves_the_queue_and_holds_up_nobody(queue):
    admission, _, clock = queue
    admission.submit(request("runs", "a", 8))
    assert admission.submit(request("dead", "a", 8, expected_seconds=1)).status == "waiting"
    clock.advance(50)
    assert admission.poll("dead").status == "waiting"
    clock.advance(61)
    admission.submit(request("next", "b", 4))
    dead = admission.submit(request("dead", "a", 8))
    assert (dead.status, dead.reason) == ("ended", "its driver stopped asking")
    assert [each.group_id for each in load_queue_of(queue)] == ["runs", "next"]


def test_a_refused_group_is_seen_until_its_driver_takes_it_back(queue):
    admission, _, _ = queue
    assert admission.submit(request("huge", "a", 9)).status == "refused"
    assert [each.group_id for each in load_queue_of(queue)] == ["huge"]
    admission.cancel("huge")
    assert load_queue_of(queue) == ()


def test_a_group_of_a_budget_that_does_not_exist_is_refused_and_not_queued(queue):
    admission, _, _ = queue
    status = admission.submit(request("lost", "aa", 1))
    assert (status.status, status.reason_code) == ("refused", "unknown-budget")
    assert status.reason == "there is no budget 'aa'; known: a, b, company"
    assert load_queue_of(queue) == ()


def load_queue_of(queue):
    _, ledger, _ = queue
    with ledger.read() as connection:
        return load_queue(connection)


def test_what_was_lent_comes_back_within_minimum_run_and_one_deadline(queue):
    admission, _, clock = queue
    for name in ("g1", "g2"):
        assert admission.submit(request(name, "a", 4)).status == "running"
    waiting = admission.submit(request("mine", "b", 4))
    assert waiting.status == "waiting"
    assert "4 lent to a, reclaim in at most 30 s" in waiting.reason
    clock.advance(10)
    assert admission.poll("mine").status == "waiting"
    leaving = [name for name in ("g1", "g2") if admission.poll(name).status == "leaving"]
    assert len(leaving) == 1
    assert admission.poll(leaving[0]).leaves_by_us == clock.now_us() + 20 * SECOND_US
    lease = admission.find_lease(leaving[0])
    admission.report_checkpoint(leaving[0], fencing_token=lease.fencing_token, remaining_seconds=590)
    admission.leave(leaving[0], fencing_token=lease.fencing_token, is_done=False, ended_us=clock.now_us())
    assert admission.poll("mine").status == "running"
    assert admission.poll(leaving[0]).status == "waiting"


def test_a_group_whose_driver_vanished_waits_again_and_its_old_token_is_fenced(queue):
    admission, _, clock = queue
    admission.submit(request("g1", "a", 4))
    old = admission.find_lease("g1")
    clock.advance(131)
    status = admission.poll("g1")
    assert (status.status, status.attempt) == ("running", 2)
    assert admission.report_checkpoint("g1", fencing_token=old.fencing_token, remaining_seconds=1) is not None


def test_who_reads_the_budgets_sees_no_lease_that_ran_out(queue):
    admission, ledger, clock = queue
    admission.submit(request("g1", "a", 4))
    settle_expired(ledger, clock, CountingIds())
    assert [each.status for each in load_queue_of(queue)] == ["running"], "it is still paid"
    clock.advance(131)
    settle_expired(ledger, clock, CountingIds())
    assert load_queue_of(queue) == ()
    with ledger.read() as connection:
        assert list_live(connection) == ()


def test_a_shape_that_can_never_fit_is_refused_and_a_cancelled_group_leaves_the_queue(queue):
    admission, ledger, _ = queue
    assert admission.submit(request("big", "a", 9)).status == "refused"
    admission.submit(request("g1", "a", 8))
    admission.submit(request("later", "a", 8))
    admission.cancel("later")
    with ledger.read() as connection:
        assert [each.group_id for each in load_queue(connection) if each.status == "waiting"] == []
