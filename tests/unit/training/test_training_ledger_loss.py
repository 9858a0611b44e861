"""A sweep whose connection to the ledger fails in the middle: nothing is lost, and nothing is told twice."""

import sqlite3
from collections import Counter

import pytest
import sqlalchemy as sa

from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.lease_rows import list_of_sweep
from mlops.budgets.leases import LeaseBook
from mlops.budgets.replay import find_differences
from mlops.budgets.state import Node
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion
from mlops.clock import SECOND_US
from mlops.errors import LedgerUnreachable
from mlops.ledger.sql_events import load_events
from mlops.training import ledger_loss, sql_trials


class Outage:
    """Breaks the real connections of an engine: from statement `first` on, for so many statements.

    With `is_kept` only commits count, and break when they are done: nobody hears that the change was kept.
    """

    def __init__(self, engine, *, first: int, length: int, is_kept: bool = False) -> None:
        self.first, self.length, self.is_kept = first, length, is_kept
        self.count, self.failed = 0, 0
        outage = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *arguments):
                if not outage.is_kept:
                    outage.pass_statement()
                return super().execute(*arguments)

        class Connection(sqlite3.Connection):
            def cursor(self, *arguments):
                return super().cursor(Cursor)

            def commit(self):
                if not outage.is_kept:
                    outage.pass_statement()
                super().commit()
                if outage.is_kept:
                    outage.pass_statement()

        @sa.event.listens_for(engine, "do_connect")
        def connect(dialect, record, arguments, options):
            options["factory"] = Connection

        engine.dispose()

    def pass_statement(self) -> None:
        self.count += 1
        if self.first <= self.count < self.first + self.length:
            self.failed += 1
            raise sqlite3.OperationalError("server closed the connection unexpectedly")


def results(outcome):
    return [(trial.number, trial.state, trial.params, trial.metrics) for trial in outcome.trials]


def spec_of(stage):
    return stage.spec(
        trials=6, epochs=3, sampler="tpe", pruner={"name": "median", "warmup_trials": 2}, lag=2, max_failures=0
    )


@pytest.fixture
def queue(stage):
    rates = RateCard((RateVersion(0, {"cpu": 3_600_000}),))
    budgets = BudgetTree.of([BudgetNode("research", cap_micro_usd=10**12, priority=500)], rates=rates)
    apply_budgets(stage.ledger, budgets, who="test")
    made = LeaseQueue(stage.ledger, LeaseBook(stage.ledger, stage.clock, stage.ids))
    made.report_nodes([Node("here", "cpu", 4_000)], kind="cpu")
    return made


@pytest.fixture(scope="module")
def undisturbed(module_stage):
    return results(module_stage.run(spec_of(module_stage), module_stage.crew()))


OUTAGES = [(first, length, False) for first in (*range(1, 60, 7), *range(60, 540, 61)) for length in (1, 30)]
OUTAGES += [(first, length, True) for first in range(1, 33, 2) for length in (1, 2)]


@pytest.mark.parametrize(("first", "length", "is_kept"), OUTAGES)
def test_a_lost_connection_changes_nothing(stage, queue, undisturbed, first, length, is_kept):
    outage = Outage(stage.ledger.engine, first=first, length=length, is_kept=is_kept)
    outcome = stage.run(spec_of(stage), stage.crew(), queue)
    assert outage.failed
    assert results(outcome) == undisturbed
    with stage.ledger.read() as connection:
        ended = Counter(event.subject for event in load_events(connection) if event.kind == "trial.finished")
        reports = {
            (f"{outcome.sweep_id}/{row.number}", row.epoch, row.metrics["loss"])
            for row in sql_trials.list_reports(connection, outcome.sweep_id)
        }
        leases = list_of_sweep(connection, outcome.sweep_id)
        assert find_differences(connection) == ()
    assert list(ended.values()) == [1] * 6, "each trial ended once"
    assert not [lease for lease in leases if lease.is_live], "every lease is given back"
    assert shown_to_people(stage) == reports


def shown_to_people(stage):
    seen = [
        (run.key, step, value)
        for run in stage.mirror.runs.values()
        for name, value, step in run.metrics
        if name == "loss"
    ]
    return set(seen)


def test_a_ledger_that_stays_away_ends_the_sweep_after_its_patience_and_resume_goes_on(stage, undisturbed):
    outage = Outage(stage.ledger.engine, first=150, length=10**6)
    crew, began_us = stage.crew(), stage.clock.monotonic_us()
    with pytest.raises(LedgerUnreachable, match="server closed the connection"):
        stage.run(spec_of(stage), crew)
    assert stage.clock.monotonic_us() - began_us > ledger_loss.PATIENCE_SECONDS * SECOND_US
    assert crew.groups == {}, "no worker outlives it"
    outage.length = 0
    with stage.ledger.write() as transaction:  # a new process
        sql_trials.update(transaction.connection, sql_trials.sweeps, where={}, driver="nowhere:1:1", seen_us=0)
    assert results(stage.run(spec_of(stage), stage.crew())) == undisturbed
