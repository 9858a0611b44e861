"""The driver with a fake crew in virtual time: order, failures, resume, leases, stops."""

import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from mlops.budgets.lease_types import LeaseRequest
from mlops.clock import SECOND_US
from mlops.errors import EnvironmentFault, ProjectError, Reason, Refusal, TrainingError
from mlops.ledger.sql_events import load_events
from mlops.training import sql_trials
from mlops.training.sweep import SweepGround, find_changes, load_earlier, run_sweep
from mlops.training.sweep_view import accept_changes, load_sweep_row, require_undriven
from mlops.training.warm_groups import WarmGroup, WarmShelf
from mlops.units import Accelerators


def params_of(outcome):
    return [(trial.number, trial.params, trial.metrics, trial.state) for trial in outcome.trials]


def test_a_sweep_runs_all_trials_and_names_the_best(stage):
    outcome = stage.run(stage.spec(trials=6), stage.crew())
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 6
    assert outcome.winner.metrics["loss"] == min(trial.metrics["loss"] for trial in outcome.trials)
    assert outcome.winner.weights_file.is_file()
    assert outcome.winner.lease_ids


def test_a_sweep_that_finds_no_cluster_is_stopped_with_the_reason_and_goes_on_later(stage):
    def find_none():
        raise EnvironmentFault("a worker group needs 25 CPUs, the Ray cluster has 2")

    spec = stage.spec(trials=2)
    ground = SweepGround(
        ledger=stage.ledger, clock=stage.clock, ids=stage.ids, leases=stage.leases, mirror=stage.mirror,
        open_crew=find_none, say=stage.lines.append,
    )  # fmt: skip
    with pytest.raises(EnvironmentFault):
        run_sweep(stage.request(spec), ground)
    row = load_sweep_row(stage.ledger, stage.request(spec).sweep_id)
    assert (row.state, row.reason) == ("stopped", "a worker group needs 25 CPUs, the Ray cluster has 2")
    assert [run.status for run in stage.mirror.runs.values()] == ["KILLED"]
    assert [trial.state for trial in stage.run(spec, stage.crew()).trials] == ["COMPLETE"] * 2


def test_two_trials_overlap_in_time(stage):
    stage.run(stage.spec(trials=4), stage.crew())
    with stage.ledger.read() as connection:
        attempts = sql_trials.list_attempts(connection, stage.request(stage.spec(trials=4)).sweep_id)
    assert any(second.started_us < first.ended_us for first, second in pairwise(attempts))


@pytest.mark.parametrize("seed", range(5))
def test_what_ends_first_changes_neither_proposals_nor_winner(stage, tmp_path, seed):
    pruner = {"name": "median", "warmup_trials": 1}
    spec = stage.spec(trials=12, sampler="tpe", pruner=pruner, groups=3, seed=seed)
    steady = stage.run(spec, stage.crew())
    (tmp_path / "other").mkdir()
    other = type(stage)(tmp_path / "other")
    uneven = other.run(spec, other.crew(seconds=lambda trial, epoch: 9.0 if trial % 3 == seed % 3 else 0.1))
    assert params_of(steady) == params_of(uneven)
    assert steady.winner.number == uneven.winner.number


def test_a_finished_sweep_is_read_back_without_a_crew(stage):
    spec = stage.spec()
    first = stage.run(spec, stage.crew())
    again = stage.run(spec, None)
    assert again == first


def test_a_lost_group_repeats_the_trial_from_its_checkpoint(stage):
    crew = stage.crew(accidents={(1, 0, 2): "lost"})
    outcome = stage.run(stage.spec(), crew)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 4
    assert ("begin", (1, 1)) in crew.log
    assert sum(1 for kind, what in crew.log if kind == "answer" and what[:2] == (1, 0)) == 1  # epoch 0 is not repeated


def test_a_trial_whose_group_dies_again_and_again_fails_and_the_sweep_goes_on(stage):
    crew = stage.crew(accidents={(0, attempt, 0): "lost" for attempt in range(3)})
    outcome = stage.run(stage.spec(max_failures=2), crew)
    assert [trial.state for trial in outcome.trials] == ["FAILED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "worker 1 died" in outcome.trials[0].reason


def test_a_trainer_error_fails_its_trial_once_and_the_sweep_goes_on(stage):
    crew = stage.crew(accidents={(2, 0, 1): "failed"})
    outcome = stage.run(stage.spec(), crew)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE", "COMPLETE", "FAILED", "COMPLETE"]
    assert "ValueError" in outcome.trials[2].reason
    assert ("begin", (2, 1)) not in crew.log


def test_all_trials_failed_is_an_error_with_the_reasons(stage):
    crew = stage.crew(accidents={(trial, 0, 0): "failed" for trial in range(4)})
    with pytest.raises(TrainingError, match="every trial") as caught:
        stage.run(stage.spec(), crew)
    assert "ValueError" in caught.value.items[0]


def test_a_silent_group_is_ended_and_its_trial_repeated(stage):
    crew = stage.crew(accidents={(0, 0, 1): "hung"})
    outcome = stage.run(stage.spec(silence="30s"), crew)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 4
    assert any("no progress for 30 s" in line for line in stage.lines)


def test_without_money_nothing_starts(stage, leases_of):
    crew = stage.crew()
    outcome = stage.run(stage.spec(), crew, leases_of(stage.clock, budget=0))
    assert isinstance(outcome, Refusal)
    assert outcome.reasons[0].code == "cap-exceeded"
    assert not crew.groups
    assert not [kind for kind, _ in crew.log if kind == "begin"]


def test_when_money_runs_out_trials_yield_and_resume_does_the_rest(stage, leases_of):
    spec = stage.spec(trials=6, epochs=5, groups=1, lag=1, lease_window="4s")
    crew = stage.crew()
    leases = leases_of(stage.clock, budget=3)
    outcome = stage.run(spec, crew, leases)
    assert isinstance(outcome, Refusal)
    assert not leases.live  # every lease was given back
    begun = [what for kind, what in crew.log if kind == "begin"]
    again = stage.crew()
    again.checkpoints = crew.checkpoints
    leases.budget = 10**9
    done = stage.run(spec, again, leases)
    assert [trial.state for trial in done.trials] == ["COMPLETE"] * 6
    finished_before = {trial for trial, _ in begun[:-1]}
    assert not finished_before & {what[0] for kind, what in again.log if kind == "begin"}


def test_every_group_pays_before_it_starts_and_settles_when_it_ends(stage):
    stage.run(stage.spec(), stage.crew())
    assert len(stage.leases.requests) == 2
    assert not stage.leases.live
    assert all(ended is not None for ended in stage.leases.settled.values())
    request = stage.leases.requests[0]
    assert (request.accelerators.kind, request.accelerators.count) == ("cpu", 0.5)
    assert request.sweep_id.startswith("sweep-")


def test_a_refused_second_group_leaves_the_first_working(stage, leases_of):
    leases = leases_of(stage.clock)
    grant = leases.reserve
    leases.reserve = lambda request: (  # quota for one group
        grant(request) if not leases.live else Refusal((Reason("quota-exceeded", "one at a time"),))
    )
    outcome = stage.run(stage.spec(), stage.crew(), leases)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 4


class Killed(BaseException):
    """Stands for kill -9 of the driver."""


def killed_after(crew, events):
    take = crew.next_events

    def next_events(*, timeout_seconds):
        nonlocal events
        events -= 1
        if events < 0:
            raise Killed
        return take(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    crew.stop_group = lambda name: None
    return crew


@pytest.mark.parametrize("events", [1, 4, 9, 14, 19, 23])
def test_a_killed_driver_goes_on_to_the_same_end_and_repeats_no_finished_trial(stage, tmp_path, events):
    spec = stage.spec(trials=7, sampler="tpe", pruner={"name": "median", "warmup_trials": 1})
    (tmp_path / "whole").mkdir()
    whole = type(stage)(tmp_path / "whole")
    expected = whole.run(spec, whole.crew())

    crew = killed_after(stage.crew(), events)
    with pytest.raises(Killed):
        stage.run(spec, crew)
    with stage.ledger.read() as connection:
        sweep_id = stage.request(spec).sweep_id
        finished = {row.number for row in sql_trials.list_trials(connection, sweep_id) if row.state != "RUNNING"}
    again = stage.crew()
    again.checkpoints = dict(crew.checkpoints)
    resumed = resume(stage, spec, again)
    assert params_of(resumed) == params_of(expected)
    assert resumed.winner.number == expected.winner.number
    assert not finished & {what[0] for kind, what in again.log if kind == "begin"}
    with stage.ledger.read() as connection:
        kinds = [(event.kind, event.subject) for event in load_events(connection, kind_prefix="trial.finished")]
        attempts = sql_trials.list_attempts(connection, sweep_id)
    assert len(kinds) == len(set(kinds)) == 7  # each trial ended once
    assert all(attempt.ended_us is not None for attempt in attempts), "else time and cost would grow for ever"


def resume(stage, spec, crew):
    """As a new process: the old driver's row is not of a live process."""
    with stage.ledger.write() as transaction:
        sql_trials.update(transaction.connection, sql_trials.sweeps, where={}, driver="nowhere:1:1", seen_us=0)
    return stage.run(spec, crew)


def test_a_sweep_of_a_live_driver_is_left_alone(stage):
    crew = killed_after(stage.crew(), 5)
    spec = stage.spec()
    with pytest.raises(Killed):
        stage.run(spec, crew)  # this process lives on, so its driver does too
    sweep_id = stage.request(spec).sweep_id
    with pytest.raises(TrainingError, match="is being driven by") as caught:
        require_undriven(stage.ledger, sweep_id, now_us=stage.clock.now_us())
    assert f"mlops sweep show {sweep_id} --follow" in caught.value.hint
    require_undriven(stage.ledger, "sweep-of-tomorrow", now_us=stage.clock.now_us())
    with pytest.raises(TrainingError, match="is being driven by"):
        stage.run(spec, stage.crew())


def test_a_driver_that_lost_its_sweep_stops_writing(stage):
    crew = stage.crew()
    take = crew.next_events

    def next_events(*, timeout_seconds):
        if len(crew.log) > 3:
            with stage.ledger.write() as transaction:
                sql_trials.update(transaction.connection, sql_trials.sweeps, where={}, driver="other:2:2")
        return take(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    with pytest.raises(TrainingError, match="was taken over"):
        stage.run(stage.spec(), crew)


def test_a_wish_to_stop_ends_in_checkpoints_and_resume_goes_on(stage):
    spec = stage.spec(trials=6, epochs=4)
    crew = stage.crew()
    take = crew.next_events

    def next_events(*, timeout_seconds):
        if len(crew.log) > 4:
            with stage.ledger.write() as transaction:
                sql_trials.update(transaction.connection, sql_trials.sweeps, where={}, wish="stop")
        return take(timeout_seconds=timeout_seconds)

    crew.next_events = next_events
    outcome = stage.run(spec, crew)
    assert isinstance(outcome, Refusal)
    assert outcome.reasons[0].code == "stopped"
    assert crew.checkpoints
    again = stage.crew()
    again.checkpoints = crew.checkpoints
    assert [trial.state for trial in stage.run(spec, again).trials] == ["COMPLETE"] * 6


def test_no_trial_within_the_constraints_is_a_refusal_that_names_the_nearest(stage):
    spec = stage.spec(constraints=[{"metric": "gap", "at_most": 0.1}])
    crew = stage.crew(score=lambda params, epoch: {"loss": 1.0, "gap": params["learning_rate"] + 0.2})
    outcome = stage.run(spec, crew)
    assert isinstance(outcome, Refusal)
    assert outcome.reasons[0].code == "constraint-violated"
    assert "gap" in outcome.reasons[0].text


@pytest.mark.parametrize(
    ("stop", "reason"),
    [({"target": 10.0}, "reached the target"), ({"plateau_trials": 2}, "no trial was better")],
)
def test_a_sweep_stops_early_by_itself(stage, stop, reason):
    crew = stage.crew(score=lambda params, epoch: {"loss": 1.0})
    outcome = stage.run(stage.spec(trials=30, stop=stop), crew)
    assert reason in outcome.stopped
    assert len(outcome.trials) < 12


def test_a_sweep_stops_at_its_deadline_after_the_trials_that_run(stage):
    outcome = stage.run(stage.spec(trials=50, stop={"deadline": "20s"}), stage.crew())
    assert "deadline" in outcome.stopped
    assert all(trial.state == "COMPLETE" for trial in outcome.trials)
    assert stage.clock.monotonic_us() < 60 * SECOND_US


def test_the_deadline_counts_from_the_first_start_however_often_the_sweep_is_resumed(stage):
    spec = stage.spec(trials=50, stop={"deadline": "60s"})
    with pytest.raises(Killed):
        stage.run(spec, killed_after(stage.crew(), 12))
    stage.clock.advance(61)
    again = stage.crew()
    outcome = resume(stage, spec, again)
    assert "deadline of 60 s" in outcome.stopped
    assert not again.log or {kind for kind, _ in again.log} <= {"left over", "close"}, "nothing starts any more"
    assert {trial.state for trial in outcome.trials} == {"COMPLETE", "PRUNED"}


def test_the_mirror_shows_trials_as_children_with_metrics_by_epoch(stage):
    outcome = stage.run(stage.spec(), stage.crew())
    parents = [run for run in stage.mirror.runs.values() if run.parent is None]
    children = [run for run in stage.mirror.runs.values() if run.parent is not None]
    assert (len(parents), len(children)) == (1, 4)
    assert parents[0].status == "FINISHED"
    assert all(run.status == "FINISHED" for run in children)
    winner = next(run for run in children if run.tags.get("mlops.is_winner") == "true")
    assert winner.params["learning_rate"] == str(outcome.winner.params["learning_rate"])
    assert [step for name, _, step in winner.metrics if name == "loss"] == [0, 1, 2]
    assert [step for name, _, step in winner.metrics if name == "system/data_wait_ms_per_step"] == [0, 1, 2]
    assert not any(name.startswith("system/") for name in outcome.winner.metrics)
    assert winner.dataset.digest == "sha256:" + "0" * 64


def test_a_winner_whose_weights_vanished_is_trained_again_and_only_it(stage):
    spec = stage.spec()
    first = stage.run(spec, stage.crew())
    first.winner.weights_file.unlink()
    crew = stage.crew()
    again = stage.run(spec, crew)
    assert [what[0] for kind, what in crew.log if kind == "begin"] == [first.winner.number]
    assert again.winner.number == first.winner.number
    assert again.winner.weights_file.is_file()


def test_the_next_sweep_takes_over_groups_that_are_still_warm_and_their_old_leases_are_settled(stage):
    shelf = []
    stage.run(stage.spec(trials=4, seed=1, idle="30s"), stage.crew(kept=shelf))
    assert len(shelf) == 2
    assert set(stage.leases.live) == {"lease-1", "lease-2"}
    crew = stage.crew(kept=shelf)
    stage.run(stage.spec(trials=5, seed=2, idle="30s"), crew)
    assert [kind for kind, _ in crew.log if kind in ("adopt", "stop")] == ["adopt", "adopt"]
    assert {"lease-1", "lease-2"} <= set(stage.leases.settled)


def test_a_group_on_the_shelf_is_taken_once_and_not_when_its_time_is_over(stage):
    shelf = WarmShelf(stage.ledger, stage.leases)
    lease = stage.leases.reserve(lease_request())
    group = WarmGroup("g", "like", "sweep-1", lease.lease_id, 1, stage.clock.now_us() + 30 * SECOND_US)
    shelf.put(group)
    assert shelf.take("other") is None
    assert shelf.take("like") == group
    assert shelf.take("like") is None
    shelf.put(group)
    stage.clock.advance(29)
    assert shelf.take("like") is None


def lease_request():
    return LeaseRequest("k", "research", Accelerators("cpu", 1.0), 60.0, 5.0, 5.0, holder="h")


def test_groups_of_a_dead_driver_are_ended_before_the_sweep_goes_on(stage):
    crew = stage.crew()

    def next_events(*, timeout_seconds):
        raise KeyboardInterrupt

    crew.next_events = next_events
    stop, crew.stop_group = crew.stop_group, lambda name: sys.exit("killed")
    with pytest.raises(SystemExit):
        stage.run(stage.spec(), crew)
    assert stop
    with stage.ledger.write() as transaction:
        sql_trials.update(transaction.connection, sql_trials.sweeps, where={}, driver="elsewhere:1:1", seen_us=0)
    again = stage.crew()
    stage.run(stage.spec(), again)
    assert sum(kind == "left over" for kind, _ in again.log) == 2


def test_losses_to_preemption_are_counted_apart_from_failures(stage):
    lost = {(0, attempt, 0): "preempted" for attempt in range(3)}
    spec = stage.spec(trials=1, max_failures=0, max_preemptions=3)
    assert [trial.state for trial in stage.run(spec, stage.crew(accidents=lost)).trials] == ["COMPLETE"]
    other = stage.spec(trials=2, seed=1, max_failures=5, max_preemptions=2)
    outcome = stage.run(other, stage.crew(accidents=lost))
    assert [trial.state for trial in outcome.trials] == ["FAILED", "COMPLETE"]


def test_a_storage_that_fails_costs_an_attempt_and_not_the_trial(stage):
    outcome = stage.run(stage.spec(trials=1), stage.crew(accidents={(0, 0, 1): "storage"}))
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"]
    with stage.ledger.read() as connection:
        assert [row.outcome for row in sql_trials.list_attempts(connection, outcome.sweep_id)] == ["lost", "complete"]


@pytest.mark.parametrize(
    ("changes", "groups"),
    [({"recycle_trials": 2}, 3), ({"recycle_mib": 1}, 6), ({}, 1)],
    ids=["after so many trials", "when memory has grown", "not otherwise"],
)
def test_worker_groups_are_replaced(stage, changes, groups):
    crew = stage.crew()
    crew.growth_bytes = 2 << 20
    stage.run(stage.spec(trials=6, groups=1, lag=1, **changes), crew)
    assert sum(kind == "stop" for kind, _ in crew.log) == groups


def test_a_drained_node_is_left_by_a_checkpoint_and_its_trial_goes_on_elsewhere(stage):
    crew = stage.crew(accidents={(0, 0, 1): "drained"})
    outcome = stage.run(stage.spec(trials=2, groups=1, epochs=4), crew)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 2
    kinds = [kind for kind, _ in crew.log]
    assert kinds.index("ask yield") < kinds.index("stop")
    assert ("begin", (0, 1)) in crew.log
    epochs = [what[1] for kind, what in crew.log if kind == "answer" and what[0] == 0]
    assert epochs == [0, 1, 2]  # nothing is done twice, and the last one ends the trial


def test_a_trial_that_does_not_yield_in_time_is_ended_and_resumed_from_its_last_commit(stage):
    crew = stage.crew(accidents={(0, 0, 1): "deaf"})
    outcome = stage.run(stage.spec(trials=1, groups=1, epochs=4, yield_deadline="3s"), crew)
    assert outcome.trials[0].state == "COMPLETE"
    with stage.ledger.read() as connection:
        first = sql_trials.list_attempts(connection, outcome.sweep_id)[0]
    assert (first.outcome, first.reason) == ("lost", "its trial did not yield before the deadline")


def test_steps_count_as_progress_and_silence_without_them_does_not(stage):
    crew = stage.crew(seconds=lambda trial, epoch: 25.0)
    crew.ticks = 5.0
    outcome = stage.run(stage.spec(trials=1, epochs=1, silence="10s", max_failures=0), crew)
    assert outcome.trials[0].state == "COMPLETE"
    with pytest.raises(TrainingError, match="every trial"):
        silent = stage.crew(seconds=lambda trial, epoch: 25.0)
        stage.run(stage.spec(trials=1, seed=1, epochs=1, silence="10s", max_failures=0), silent)


def test_a_warm_start_names_ended_sweeps_with_trials_that_fit(stage):
    first = stage.run(stage.spec(), stage.crew())
    narrow = {"learning_rate": {"low": 0.5, "high": 0.9}}
    problems = {
        "there is no sweep 'sweep-nothing'": stage.spec(warm_start=["sweep-nothing"]),
        "no complete trial": stage.spec(space=narrow, warm_start=[first.sweep_id]),
    }
    for problem, spec in problems.items():
        with pytest.raises(ProjectError) as caught:
            load_earlier(stage.ledger, spec)
        assert problem in caught.value.items[0]
    assert len(load_earlier(stage.ledger, stage.spec(warm_start=[first.sweep_id]))) == 4


def test_a_sweep_with_changed_inputs_is_another_one_unless_somebody_asks(stage):
    request = stage.request(stage.spec())
    changed = replace(request, inputs={**request.inputs, "trainer": "sha256:" + "b" * 64})
    assert changed.sweep_id != request.sweep_id
    assert find_changes(changed, request.inputs) == ("trainer",)
    assert replace(changed, resumed_id=request.sweep_id).sweep_id == request.sweep_id
    stage.run(stage.spec(), stage.crew())
    accept_changes(stage.ledger, request.sweep_id, inputs=changed.inputs, changed=["trainer"])
    assert find_changes(changed, load_sweep_row(stage.ledger, request.sweep_id).inputs) == ()


def test_an_elastic_group_starts_smaller_when_there_is_no_place_for_all(stage):
    crew = stage.crew()
    crew.room = 2
    outcome = stage.run(stage.spec(trials=2, workers=8, min_workers=2, groups=1, lag=1, max_failures=0), crew)
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 2
    assert [request.accelerators.count for request in stage.leases.requests] == [4.0, 2.0, 1.0]
    rigid = stage.crew()
    rigid.room = 2
    assert isinstance(stage.run(stage.spec(seed=1, workers=8, groups=1, max_failures=0), rigid), Refusal)
