"""Sweeps on a real local Ray: two workers per trial, two trials at a time, crashes, warm and cold."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import traceback
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from mlops.errors import Refusal
from mlops.provenance.confinement import landlock_version
from mlops.training import sql_trials
from mlops.training.attempt import AttemptTask, Ended, Gone, GroupShape, Progressed, Ready
from mlops.training.local_attempt import LocalChannel, LocalTrial
from mlops.training.local_group import run_local_group
from mlops.training.ray_cluster import connected, find_local
from mlops.training.ray_worker import SourceRecipe

pytestmark = pytest.mark.timeout(600)


def attempts_of(project, outcome):
    with project.ledger.read() as connection:
        return sql_trials.list_attempts(connection, outcome.sweep_id)


def results_of(outcome):
    return [(trial.params, trial.metrics, trial.weights_sha256) for trial in outcome.trials]


def test_trials_of_two_workers_overlap_on_warm_groups(ray_project, calm):
    attempts = attempts_of(ray_project, calm)
    assert [trial.state for trial in calm.trials] == ["COMPLETE"] * 4
    assert len({attempt.worker_group for attempt in attempts}) == 2  # four trials, two groups: some were warm
    assert any(second.started_us < first.ended_us for first, second in pairwise(attempts))
    assert not ray_project.leases.live


def test_ray_leaves_standard_output_and_sigterm_to_the_command(ray_project, capfd):
    before = signal.getsignal(signal.SIGTERM)
    with connected(ray_project.places):
        assert signal.getsignal(signal.SIGTERM) is before
        import ray  # not before the environment is set

        ray._private.worker.print_worker_logs({"lines": ["A worker died"], "pid": "raylet"}, sys.stdout)
    assert "A worker died" not in capfd.readouterr().out


def test_a_trainer_that_fails_on_one_worker_only_fails_its_trial_and_not_the_sweep(ray_project):
    trainer = ray_project.places.trainer_file("tiny")
    trainer.write_text(
        trainer.read_text().replace(
            "    for _ in worker.epochs",
            "    if params['learning_rate'] == 0.02 and worker.rank == 1:\n        raise ValueError('only here')\n"
            "    for _ in worker.epochs",
        )
    )
    outcome = ray_project.launch(ray_project.spec(trials=3, groups=1, first=[{"learning_rate": 0.02}]))
    assert [trial.state for trial in outcome.trials] == ["FAILED", "COMPLETE", "COMPLETE"]
    assert "ValueError: only here" in outcome.trials[0].reason


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
def test_a_trainer_that_writes_to_shared_state_fails_its_trial_and_changes_nothing(ray_project):
    """Trial 0 writes into its own folder; trial 1 over its own source, and then into the folder of trial 0."""
    places = ray_project.places
    trainer, start = places.trainer_file("tiny"), "    net = model(params)"
    writing = """    note = worker.folder / "note"
    if params["learning_rate"] == 0.02:
        note = worker.folder.parents[1] / "00000" / "own" / "note"
        try:
            open(__file__, "w")
        except PermissionError:
            note.write_text("x")
    note.write_text("mine")
"""
    text = trainer.read_text().replace(start, f"{writing}{start}", 1)
    trainer.write_text(text)
    points = [{"learning_rate": rate} for rate in (0.04, 0.02)]
    outcome = ray_project.launch(ray_project.spec(trials=2, first=points, groups=1, workers=1))
    assert [trial.state for trial in outcome.trials] == ["COMPLETE", "FAILED"]
    reason = outcome.trials[1].reason
    assert reason.startswith("tiny.py:"), reason
    assert reason.endswith("/00000/own/note'; a trainer writes only below `worker.folder` and to temporary files")
    assert trainer.read_text() == text
    assert (places.checkpoints / outcome.sweep_id / "00000" / "own" / "note").read_text() == "mine"


def test_a_killed_worker_is_replaced_and_its_trial_resumed_to_the_same_weights(ray_project, calm, tmp_path):
    other = type(ray_project)(tmp_path)
    other.places, killed = ray_project.places, []

    def say(line):
        if "trial 0 epoch 2/3" in line and not killed:
            workers = [process for process in psutil.process_iter(["name"]) if "WorkerActor" in process.info["name"]]
            mine = [worker for worker in workers if belongs_to(worker, ray_project)]
            killed.append(mine[0].pid)
            os.kill(mine[0].pid, signal.SIGKILL)

    outcome = other.launch(other.calm_spec(groups=1), say=say)
    assert killed
    assert results_of(outcome) == results_of(calm)
    first = [attempt for attempt in attempts_of(other, outcome) if attempt.number == 0]
    assert [attempt.outcome for attempt in first] == ["lost", "complete"]
    assert not other.leases.live
    other.ledger.close()


def belongs_to(process, project):
    keeper = find_local(project.places)
    return keeper is not None and keeper.pid in [parent.pid for parent in process.parents()]


def test_a_worker_whose_lease_ends_stops_by_itself(ray_project):
    spec = ray_project.spec(groups=1)
    with ray_project.crew(spec) as crew:
        now_us = time.monotonic_ns() // 1_000
        shape = GroupShape(1, "cpu", 0.5)
        crew.start_group("g", shape=shape, until_us=now_us + 60_000_000, start_deadline_seconds=60)
        events = wait_for(crew, Ready)
        assert events
        pid = crew.pids_of("g")[0]
        crew.extend("g", until_us=time.monotonic_ns() // 1_000 + 500_000)
        psutil.Process(pid).wait(timeout=10)
        crew.stop_group("g")


def test_a_worker_in_another_environment_refuses_to_start_and_the_sweep_says_what_differs(ray_project):
    lock = ray_project.places.lock_file
    lock.write_text("torch==1.0.0\nno-such-thing==3\n")
    try:
        refusal = ray_project.launch(ray_project.spec(trials=1, seed=77))
    finally:
        lock.unlink()
    assert isinstance(refusal, Refusal)
    text = refusal.render_text()
    assert "refuses to start: its environment" in text
    assert "no-such-thing is missing instead of 3, torch 2." in text
    assert "instead of 1.0.0" in text
    assert sum("is gone" in line and "refuses to start" in line for line in ray_project.lines) <= 2, "not again"
    assert not ray_project.leases.live


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_by_hand_gives_the_weights_and_metrics_of_the_sweep(ray_project, calm, tmp_path, workers):
    spec = ray_project.calm_spec(workers=workers, groups=1)
    trial = (calm if workers == 2 else ray_project.launch(spec)).trials[3]  # its group was warm
    channel = LocalChannel()
    by_hand = LocalTrial(
        spec=spec,
        trainer_file=ray_project.places.trainer_file("tiny"),
        params=trial.params,
        reserved=ray_project.request(spec).reserved,
        folder=tmp_path / "by-hand",
        seed=trial.seed,
        epochs=spec.epochs,
    )
    recipe = SourceRecipe(ray_project.version, str(ray_project.places.cache / "shards"))
    result = run_local_group(by_hand, workers=workers, open_source=recipe.open, channel=channel)
    assert (result.outcome, result.weights_sha256) == ("complete", trial.weights_sha256), result.reason
    assert channel.reports[-1] == trial.metrics


def wait_for(crew, kind):
    for _ in range(60):
        found = [event for event in crew.next_events(timeout_seconds=1.0) if isinstance(event, kind)]
        if found:
            return found
    return []


HELD = """
import sys
import time
from pathlib import Path


class HeldWeights(dict):
    def items(self):
        hold(self.gate)
        return super().items()


def hold(gate):
    while not Path(gate).exists():
        time.sleep(0.01)


def hold_weights(net, gate):
    def state_dict():
        found = HeldWeights(type(net).state_dict(net))
        found.gate = gate
        return found

    net.state_dict = state_dict

"""


def test_the_progress_shown_is_that_of_the_attempt_that_trains_not_of_those_behind_and_before_it(ray_project, tmp_path):
    """Trial 1 stops at its fourth step and again when its weights are written; trial 2, sent ahead, at its fifth."""
    trainer = ray_project.places.trainer_file("tiny")
    loop = '        for batch in worker.batches("train", batch_size=16):\n'
    held = """        hold_weights(net, params["gate"] + "-written")
        for number, batch in enumerate(worker.batches("train", batch_size=16)):
            if number == params["steps"]:
                hold(params["gate"])
"""
    text = trainer.read_text()
    assert loop in text
    trainer.write_text(text.replace("\nclass Net", f"{HELD}\nclass Net").replace(loop, held))
    gates = [tmp_path / name for name in ("0", "0-written", "1", "2", "1-written", "2-written")]
    for gate in gates[:2]:  # trial 0 only warms the worker up: who comes first is then in order
        gate.touch()
    spec = ray_project.spec(epochs=1, workers=1, groups=1)
    with ray_project.crew(spec) as crew:
        until_us = time.monotonic_ns() // 1_000 + 300_000_000
        crew.start_group("g", shape=GroupShape(1, "cpu", 0.5), until_us=until_us, start_deadline_seconds=60)
        assert wait_for(crew, Ready)
        crew.begin("g", held_task(ray_project, spec, 0, tmp_path))
        assert wait_for(crew, Ended)
        for number in (1, 2):
            crew.begin("g", held_task(ray_project, spec, number, tmp_path))
        seen = watch(crew, (1, 0, 3))
        assert seen[-1:] == [(1, 0, 3)]
        assert {trial for trial, _, _ in seen} == {1}
        gates[2].touch()
        assert watch(crew, (2, 0, 4))[-1:] == [(2, 0, 4)], "trial 1 has trained, and only writes its weights"
        for gate in gates[3:]:
            gate.touch()
        ended = wait_for(crew, Ended)
        ended += wait_for(crew, Ended) if len(ended) == 1 else []
        assert [(event.trial, event.outcome) for event in ended] == [(1, "complete"), (2, "complete")]
        crew.stop_group("g")


def held_task(project, spec, number, folder):
    gate = str(folder / str(number))
    params = {"learning_rate": 0.01, "gate": gate, "steps": 2 + number, **project.request(spec).reserved}
    return AttemptTask(
        sweep_id="held", trial=number, attempt=0, params=params, seed=1, epochs=1, checkpoint_epochs=1,
        trainer_file=str(project.places.trainer_file("tiny")), trainer_digest="", required_metrics=("loss",),
        trial_folder=str(folder / f"trial-{number}"),
    )  # fmt: skip


def watch(crew, expected):
    """(trial, epoch, steps) of what progressed until then."""
    seen = []
    for _ in range(40):
        found = [event for event in crew.next_events(timeout_seconds=1.0) if isinstance(event, Progressed)]
        seen += [(event.trial, event.epoch, event.steps) for event in found]
        if expected in seen:
            break
    return seen


def test_more_workers_than_fit_are_given_up_at_the_deadline(ray_project):
    with ray_project.crew(ray_project.spec()) as crew:
        until_us = time.monotonic_ns() // 1_000 + 60_000_000
        crew.start_group("g", shape=GroupShape(9, "cpu", 1.0), until_us=until_us, start_deadline_seconds=1.0)
        (gone,) = wait_for(crew, Gone)
        assert "no place" in gone.reason


def test_a_worker_that_cannot_begin_says_what_was_raised_not_that_ray_heard_of_it(ray_home):
    from ray.exceptions import ActorDiedError, RayTaskError  # once connected: Ray reads its environment at its import

    from mlops.training.ray_group import explain_death

    try:
        raise ValueError("no such folder\nand more")
    except ValueError as error:
        raised = RayTaskError("WorkerActor.__init__", traceback.format_exc(), error, proctitle="ray", pid=1, ip="here")
    died = ActorDiedError(raised)
    assert explain_death(died, rank=1) == "worker 1 could not begin: ValueError: no such folder"
    assert explain_death(ActorDiedError(), rank=0).startswith("worker 0 died: ActorDiedError: The actor died")


def test_a_killed_driver_leaves_no_worker_and_the_same_command_goes_on(ray_project, calm, tmp_path):
    """`kill -9` in the middle; then the same sweep in this process."""
    script = tmp_path / "drive.py"
    script.write_text(
        textwrap.dedent(
            """
            import runpy, sys
            made = runpy.run_path(sys.argv[1], run_name="integration_conftest")
            from pathlib import Path
            project = made["RayProject"].__new__(made["RayProject"])
            project.__init__(Path(sys.argv[2]))
            project.places = type(project.places)(Path(sys.argv[3]))
            def say(line):
                print(line, flush=True)
            project.launch(project.calm_spec(groups=1), say=say)
            """
        )
    )
    conftest = str(Path(__file__).with_name("conftest.py"))
    state = tmp_path / "state"
    command = [sys.executable, str(script), conftest, str(state), str(ray_project.places.root)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in driver.stdout:
        if " complete" in line:
            driver.kill()
            break
    driver.wait(timeout=30)
    driver.stdout.close()
    resumed = type(ray_project).__new__(type(ray_project))
    reopen(resumed, state, ray_project)
    outcome = resumed.launch(resumed.calm_spec(groups=1))
    again = {attempt.number for attempt in attempts_of(resumed, outcome) if attempt.attempt > 0}
    assert len(again) < 4
    assert [trial.state for trial in outcome.trials] == ["COMPLETE"] * 4
    assert results_of(outcome) == results_of(calm)
    resumed.ledger.close()


def reopen(project, folder, like):
    from mlops.ledger.connection import open_ledger, sqlite_url
    from mlops.places import Places

    project.__dict__.update(like.__dict__)
    project.ledger = open_ledger(sqlite_url(Places(folder / "project").ledger_file), like.clock)
    project.leases = type(like.leases)(like.clock, first=100)
    project.leases.settle = lambda *args, **options: None  # leases of the dead driver are unknown to this fake
    project.lines = []


def test_the_local_ray_is_reused_and_listens_on_loopback_only(ray_project):
    before = find_local(ray_project.places)
    with connected(ray_project.places):
        assert find_local(ray_project.places) == before
        ours = psutil.Process(before.pid)
        for process in [ours, *ours.children(recursive=True)]:
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), process.name()
    assert socket.gethostname()
