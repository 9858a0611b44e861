"""What people see of a sweep while it runs: trials, cost, what the budget has left, and when it will end."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.leases import LeaseBook
from mlops.budgets.sql_budgets import accounts
from mlops.budgets.state import Node
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion
from mlops.clock import SECOND_US
from mlops.training import sql_trials
from mlops.training.sweep import MEMBERS
from mlops.training.sweep_view import view_sweep

USD_PER_CPU_SECOND = 1_000
"""In micro-USD."""


@pytest.fixture
def queue(stage):
    rates = RateCard((RateVersion(0, {"cpu": 3_600 * USD_PER_CPU_SECOND}),))
    tree = BudgetTree.of([BudgetNode("research", cap_micro_usd=10_000_000, priority=500)], rates=rates)
    apply_budgets(stage.ledger, tree, who="test")
    made = LeaseQueue(stage.ledger, LeaseBook(stage.ledger, stage.clock, stage.ids))
    made.report_nodes([Node("here", "cpu", 2_000)], kind="cpu")
    return made


def watch(stage, crew):
    """Views that a second process would see: one each time the driver listens."""
    views, listen = [], crew.next_events

    def next_events(*, timeout_seconds):
        sweep_id = stage.request(stage.spec_run).sweep_id
        views.append(view_sweep(stage.ledger, sweep_id, now_us=stage.clock.now_us()))
        return listen(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    return views


@pytest.fixture
def views(stage, queue):
    stage.spec_run = stage.spec(trials=6, epochs=4, groups=2, accelerators="1xcpu", stop={"spend": "9 USD"})
    crew = stage.crew(seconds=lambda trial, epoch: 5.0)
    found = watch(stage, crew)
    stage.run(stage.spec_run, crew, queue)
    return found


def test_cost_grows_with_the_time_on_groups_and_ends_at_what_is_charged(stage, views):
    costs = [view.cost_micro_usd for view in views]
    assert costs == sorted(costs)
    last = view_sweep(stage.ledger, views[-1].sweep_id, now_us=stage.clock.now_us())
    of_budget = accounts.c.scope == "budget:research"
    with stage.ledger.read() as connection:
        charged = connection.scalar(sa.select(sa.func.sum(accounts.c.charged_micro_usd)).where(of_budget))
    assert last.cost_micro_usd == charged
    each = 4 * 5 * USD_PER_CPU_SECOND  # epochs, seconds
    assert [trial.cost_micro_usd for trial in last.trials] == [each] * 6


def test_what_is_left_is_that_of_the_tightest_limit_and_prepaid_money_is_not_left(views):
    assert views[0].left_micro_usd < 9_000_000  # of the sweep itself, not the ten of its budget
    assert all(view.left_micro_usd + view.cost_micro_usd <= 9_000_000 for view in views)


def test_the_expected_end_is_near_the_real_one_from_the_first_report_on(stage, views):
    first = next(view for view in views if view.ends_us is not None)
    assert sum(trial.epoch for trial in first.trials) == 1
    ended_us = views[-1].ends_us
    for view in views:
        if view.ends_us is not None:
            assert abs(view.ends_us - ended_us) <= 12 * SECOND_US  # an epoch of each group that is not reported yet
    last = view_sweep(stage.ledger, first.sweep_id, now_us=stage.clock.now_us())
    assert (last.ends_us, last.state) == (None, "finished")


def test_a_deadline_ends_a_sweep_before_its_trials_would(stage, queue):
    stage.spec_run = stage.spec(trials=40, epochs=4, groups=1, stop={"deadline": "60s"})
    crew = stage.crew(seconds=lambda trial, epoch: 5.0)
    views = watch(stage, crew)
    stage.run(stage.spec_run, crew, queue)
    started_us = min(view.ends_us for view in views if view.ends_us) - 60 * SECOND_US
    assert all(view.ends_us in (started_us + 60 * SECOND_US, None) or view.seconds > 60 for view in views)


def test_trials_that_wait_have_cost_nothing(views):
    waiting = [trial for view in views for trial in view.trials if trial.state == "WAITING"]
    assert waiting
    assert {replace(trial, number=0, params={}).cost_micro_usd for trial in waiting} == {0}


def test_a_running_trial_shows_its_step_of_the_epoch_at_hand(stage, queue):
    stage.spec_run = stage.spec(trials=2, epochs=3, groups=1)
    crew = stage.crew(seconds=lambda trial, epoch: 5.0)
    crew.ticks = 1.0
    views = watch(stage, crew)
    stage.run(stage.spec_run, crew, queue)
    shown = {(trial.number, trial.epoch, trial.step) for view in views for trial in view.trials if trial.step}
    assert {epoch for _, epoch, _ in shown} == {0, 1, 2}
    assert {step for _, _, step in shown} >= {1, 2, 3}
    last = view_sweep(stage.ledger, views[-1].sweep_id, now_us=stage.clock.now_us())
    assert [trial.step for trial in last.trials] == [0, 0]


def test_time_inside_trials_counts_while_they_run_and_never_exceeds_what_is_paid(views):
    assert max(view.time_use.busy for view in views if view.done == 0) > 0
    assert all(view.time_use.busy <= view.time_use.paid for view in views)


def test_no_member_of_an_ensemble_is_a_winner_whatever_was_recorded(stage):
    outcome = stage.run(stage.spec(trials=2), stage.crew())
    with stage.ledger.write() as transaction:
        where, inputs = {"sweep_id": outcome.sweep_id}, {MEMBERS: "sha256:0"}
        sql_trials.update(transaction.connection, sql_trials.sweeps, where=where, inputs=inputs)
        transaction.append("test", outcome.sweep_id, {})
    view = view_sweep(stage.ledger, outcome.sweep_id, now_us=stage.clock.now_us())
    assert view.trains_members
    assert (view.winner, [trial.is_winner for trial in view.trials]) == (None, [False, False])


def test_a_sweep_whose_driver_died_uses_no_more_time_while_nobody_goes_on_with_it(stage):
    outcome = stage.run(stage.spec(trials=2), stage.crew())
    now_us = stage.clock.now_us()
    with stage.ledger.write() as transaction:
        where, driver = (
            {"sweep_id": outcome.sweep_id},
            {"driver": "nowhere:1:1", "seen_us": now_us, "finished_us": None},
        )
        sql_trials.update(transaction.connection, sql_trials.sweeps, where=where, state="running", **driver)
        for table in (sql_trials.attempts, sql_trials.group_leases):
            sql_trials.update(transaction.connection, table, where=where, ended_us=None)
        transaction.append("test", outcome.sweep_id, {})
    soon, later = (view_sweep(stage.ledger, outcome.sweep_id, now_us=now_us + days * 10**11) for days in (1, 9))
    assert soon.state == later.state == "interrupted"
    assert (soon.seconds, soon.time_use, soon.trials) == (later.seconds, later.time_use, later.trials)
