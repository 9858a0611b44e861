"""Short trials are given to a group before the one it runs has ended, and nothing else changes."""

from collections import Counter
from itertools import pairwise

import pytest

from mlops.errors import Refusal
from mlops.training import sql_trials
from mlops.training.sweep_view import wish_stop

SHORT = {"trials": 12, "groups": 2, "epochs": 2}


def quick(trial, epoch):
    return 0.1


def outcome_of(stage, crew, **changes):
    outcome = stage.run(stage.spec(**{**SHORT, **changes}), crew)
    return [(trial.number, trial.params, trial.metrics, trial.state) for trial in outcome.trials]


def attempts_of(stage, **changes):
    sweep_id = stage.request(stage.spec(**{**SHORT, **changes})).sweep_id
    with stage.ledger.read() as connection:
        return sql_trials.list_attempts(connection, sweep_id)


@pytest.fixture
def twin(stage, tmp_path):
    (tmp_path / "twin").mkdir()
    return type(stage)(tmp_path / "twin")


def count_ahead(crew):
    """Attempts that were given to a busy group."""
    return sum(kind == "begin ahead" for kind, _ in crew.log)


def test_short_trials_are_sent_ahead_and_long_ones_wait_for_a_free_group(stage, twin):
    short, long = stage.crew(seconds=quick), twin.crew(seconds=lambda trial, epoch: 5.0)
    assert outcome_of(stage, short) == outcome_of(twin, long)
    assert count_ahead(short) >= 4
    assert count_ahead(long) == 0


def test_a_crew_that_takes_one_attempt_at_a_time_gets_one(stage):
    crew = stage.crew(seconds=quick)
    crew.runs_ahead = False
    outcome_of(stage, crew)
    assert count_ahead(crew) == 0


def test_an_attempt_counts_from_when_it_began_not_from_when_it_was_sent(stage):
    crew = stage.crew(seconds=quick)
    outcome_of(stage, crew)
    assert count_ahead(crew)
    for group in {attempt.worker_group for attempt in attempts_of(stage)}:
        of_group = sorted((it for it in attempts_of(stage) if it.worker_group == group), key=lambda it: it.started_us)
        for earlier, later in pairwise(of_group):
            assert earlier.ended_us <= later.started_us


@pytest.mark.parametrize("accident", ["lost", "preempted", "storage", "failed", "drained", "hung"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_what_befalls_a_trial_costs_the_one_behind_it_nothing(stage, twin, accident, epoch):
    """Both get no second chance; only the trial that something befell may end otherwise than undisturbed."""
    limits = {"max_failures": 0, "max_preemptions": 0, "silence": "20s"}
    calm = outcome_of(twin, twin.crew(seconds=quick), **limits)
    crew = stage.crew(seconds=quick, accidents={(5, 0, epoch): accident})
    found = outcome_of(stage, crew, **limits)
    assert count_ahead(crew)
    assert [it[0] for it in found] == list(range(12))
    assert [it for it in found if it[0] != 5] == [it for it in calm if it[0] != 5]
    assert found[5][3] == "FAILED"
    assert not stage.leases.live
    assert all(attempt.ended_us is not None for attempt in attempts_of(stage, **limits))


def test_a_wish_to_stop_reaches_the_trial_behind_too_and_resume_does_the_rest(stage):
    crew = stage.crew(seconds=quick)
    spec = stage.spec(**{**SHORT, "trials": 200})
    sweep_id = stage.request(spec).sweep_id

    take = crew.next_events

    def next_events(*, timeout_seconds):
        if count_ahead(crew) == 3:
            wish_stop(stage.ledger, sweep_id)
        return take(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    stopped = stage.run(spec, crew)
    assert isinstance(stopped, Refusal)
    ahead = [what for kind, what in crew.log if kind == "begin ahead"][-1]
    yielded = {(it.number, it.attempt) for it in attempts_of(stage, trials=200) if it.outcome == "yielded"}
    assert ahead in yielded
    again = stage.crew(seconds=quick)
    again.checkpoints = crew.checkpoints
    done = stage.run(spec, again)
    assert [trial.state for trial in done.trials] == ["COMPLETE"] * 200


def test_a_group_that_is_due_for_replacement_gets_nothing_ahead(stage):
    crew, changes = stage.crew(seconds=quick), {"recycle_trials": 3, "groups": 1}
    outcome_of(stage, crew, **changes)
    assert count_ahead(crew)
    by_group = Counter(attempt.worker_group for attempt in attempts_of(stage, **changes))
    assert list(by_group.values()) == [3] * 4


def test_a_drained_machine_is_left_by_the_trial_behind_too(stage):
    crew = stage.crew(seconds=quick, accidents={(5, 0, 1): "drained"})
    found = outcome_of(stage, crew, groups=1, epochs=3)
    assert [it[3] for it in found] == ["COMPLETE"] * 12
    assert ("begin ahead", (6, 0)) in crew.log
    outcomes = {(it.number, it.attempt): it.outcome for it in attempts_of(stage, groups=1, epochs=3)}
    assert {outcomes[5, 0], outcomes[6, 0]} == {"yielded"}
    assert {outcomes[5, 1], outcomes[6, 1]} == {"complete"}
