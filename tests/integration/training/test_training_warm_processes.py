"""A worker group that one process left warm serves the sweep of another one, as if it were new; both have paid."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.leases import LeaseBook
from mlops.budgets.replay import find_differences
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion
from mlops.ledger.sql_events import load_events
from mlops.training import sql_trials

pytestmark = pytest.mark.timeout(600)

DRIVER = """
import runpy, sys
from pathlib import Path
made = runpy.run_path(sys.argv[1], run_name="integration_conftest")
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.leases import LeaseBook
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
project = made["RayProject"](Path(sys.argv[2]))
project.ledger.close()
project.places = Places(Path(sys.argv[3]))
project.ledger = open_ledger(sqlite_url(project.places.ledger_file), project.clock)
project.leases = LeaseQueue(project.ledger, LeaseBook(project.ledger, project.clock, project.ids))
print(project.launch(project.spec(trials=2, seed=41, groups=1, idle="120s")).sweep_id)
"""


def test_a_second_process_takes_over_the_group_and_trains_on_it_as_on_a_new_one(ray_project, calm, tmp_path):
    rates = RateCard((RateVersion(0, {"cpu": 3_600_000}),))
    tree = BudgetTree.of([BudgetNode("research", cap_micro_usd=10_000_000, priority=500)], rates=rates)
    apply_budgets(ray_project.ledger, tree, who="test")
    script = tmp_path / "drive.py"
    script.write_text(DRIVER)
    conftest, root = str(Path(__file__).with_name("conftest.py")), str(ray_project.places.root)
    first = subprocess.run(
        [sys.executable, str(script), conftest, str(tmp_path / "first"), root],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    (kept,), (old,) = shelf(ray_project), LeaseBook(ray_project.ledger, ray_project.clock, ray_project.ids).list_live()
    assert (kept.sweep_id, kept.lease_id) == (first.stdout.strip(), old.lease_id)

    book = LeaseBook(ray_project.ledger, ray_project.clock, ray_project.ids)
    spec = ray_project.calm_spec(groups=1)
    second = ray_project.launch(spec, leases=LeaseQueue(ray_project.ledger, book))
    with ray_project.ledger.read() as connection:
        attempts = sql_trials.list_attempts(connection, second.sweep_id)
        events = [event for event in load_events(connection) if event.subject == kept.worker_group]
        (ended,) = (it.ended_us for it in sql_trials.list_group_leases(connection, kept.sweep_id))
        assert not find_differences(connection)
    assert {attempt.worker_group for attempt in attempts} == {kept.worker_group}
    assert [event.kind for event in events] == ["group.kept", "group.taken"]
    assert old.lease_id not in {attempt.lease_id for attempt in attempts}, "each pays for its own time"
    assert ended < kept.until_us, "settled when it was taken, not when its time would have been over"
    assert (shelf(ray_project), book.list_live()) == ([], ())

    assert results_of(second) == results_of(calm)


def shelf(project):
    with project.ledger.read() as connection:
        return connection.execute(sql_trials.warm_groups.select()).all()


def results_of(outcome):
    return [(trial.params, trial.metrics, trial.weights_sha256) for trial in outcome.trials]
