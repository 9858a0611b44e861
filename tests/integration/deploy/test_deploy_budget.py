"""What serves is paid from a budget: with real HAProxy and git, instances as plain processes."""

import shutil

import pytest

from mlops.budgets.configuration import load_applied, set_budget
from mlops.budgets.leases import LeaseBook
from mlops.deploy.environment import ServingBudget
from mlops.deploy.promoting import promote
from mlops.deploy.reconciler import stop_serving
from mlops.deploy.status import load_environment_status
from mlops.errors import Refusal

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]
RATES = "version: 1\nrates:\n  - from: 2020-01-01\n    prices: {cpu: 3.6 USD}\n"


def make_paying(world, *, cap: str, serving: str = "keep"):
    world.write("budgets/serving.yaml", f"version: 1\ncap: {cap}\nperiod: once\nserving: {serving}\n")
    world.write("budgets/rates.yaml", RATES)
    paying = world.with_rules(budget=ServingBudget(name="serving", window="100s"))
    world.release(1)
    promoted = promote(paying.site, paying.rules, "income@1")
    assert not isinstance(promoted, Refusal), promoted.render_text()
    return paying


def list_leases(world):
    return LeaseBook(world.site.ledger, world.site.clock, world.site.ids).list_live()


def exhaust(world):
    """Lower the cap below what is spent, and let the lease come to its renewal."""
    with world.site.ledger.read() as connection:
        node = load_applied(connection).by_name["serving"]
    set_budget(world.site.ledger, type(node)(**{**vars(node), "cap_micro_usd": 1}), who="boss", why="test")


def test_a_product_holds_one_lease_and_gives_it_back_when_it_stops(world):
    paying = make_paying(world, cap="10 USD")
    for _ in range(2):
        assert not paying.reconciler().run_once().reasons
    (served,) = load_environment_status(paying.site, paying.rules).products
    assert served.outage != "stopped"
    (lease,) = list_leases(world)
    assert (lease.holder, lease.purpose) == (f"serving:{world.rules.name}/income", "serving")
    list(stop_serving(paying.reconciler()))
    (stopped,) = load_environment_status(paying.site, paying.rules).products
    assert (stopped.is_converged, stopped.outage, stopped.healthy_instances) == (False, "stopped", None)
    assert list_leases(world) == ()
    assert LeaseBook(world.site.ledger, world.site.clock, world.site.ids).find(lease.lease_id).charged_micro_usd > 0


def test_an_exhausted_budget_starts_nothing(world):
    paying = make_paying(world, cap="0.01 USD")
    outcome = paying.reconciler().run_once()
    assert [reason.code for reason in outcome.reasons] == ["cap-exceeded"]
    assert world.runtime.started == []


@pytest.mark.parametrize(("serving", "goes_on"), [("keep", True), ("stop", False)])
def test_only_a_budget_that_says_so_stops_what_serves(world, serving, goes_on):
    paying = make_paying(world, cap="10 USD", serving=serving)
    assert not paying.reconciler().run_once().reasons
    exhaust(world)
    due = paying.with_rules(budget=ServingBudget(name="serving", window="100000s"))  # so its renewal is due
    outcome = due.reconciler().run_once()
    assert bool(outcome.reasons) is not goes_on
    assert bool(world.runtime.list_instances()) is goes_on
