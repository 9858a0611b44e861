"""The commands of sweeps and trainers on a project in a folder, as a user types them."""

import json
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlops.cli.main import mlops as command
from mlops.clock import FakeClock, SystemClock
from mlops.deploy.runtime_podman import is_podman_installed
from mlops.errors import ProjectError
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.training import sql_trials


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one finished and one interrupted sweep in its ledger."""
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    monkeypatch.chdir(tmp_path)
    clock = FakeClock(SystemClock().now_us())
    ledger = open_ledger(sqlite_url(Places(tmp_path).ledger_file), clock)
    for sweep_id, state, winner in (("sweep-aa", "finished", 1), ("sweep-bb", "running", None)):
        insert_sweep(ledger, sweep_id, state=state, winner=winner)
        clock.advance(10)
    ledger.close()
    return tmp_path


def insert_sweep(ledger, sweep_id, *, state, winner, **inputs):
    spec = {"budget": "research", "trials": 2, "epochs": 3, "objective": {"metric": "loss"}}
    with ledger.write() as transaction:
        now_us, connection = transaction.now_us, transaction.connection
        sql_trials.insert(
            connection,
            sql_trials.sweeps,
            sweep_id=sweep_id,
            product="tiny",
            state=state,
            spec=spec,
            inputs={"trainer": "sha256:1", **inputs},
            driver="elsewhere:1:1",
            started_us=now_us,
            seen_us=now_us - 10**9,
            finished_us=now_us + 5_000_000 if winner is not None else None,
            winner=winner,
            reason="",
            mlflow_run_id="",
            wish="",
        )
        for number in range(2):
            key = {"sweep_id": sweep_id, "number": number}
            sql_trials.insert(
                connection,
                sql_trials.trials,
                **key,
                state="COMPLETE",
                params={"learning_rate": 0.1 + number},
                seed=number,
                metrics={"loss": 0.5 - number / 10},
                weights_file="",
                weights_sha256="",
                mlflow_run_id="",
                reason="",
                started_us=now_us,
                finished_us=now_us + 2_000_000,
            )
            sql_trials.insert(
                connection,
                sql_trials.attempts,
                **key,
                attempt=0,
                worker_group="group-1",
                lease_id="lease-1",
                fencing_token=1,
                started_us=now_us,
                ended_us=now_us + 2_000_000,
                outcome="complete",
                reason="",
                busy_us=1_500_000,
                data_wait_us=100_000,
            )
        sql_trials.insert(
            connection,
            sql_trials.group_leases,
            sweep_id=sweep_id,
            lease_id="lease-1",
            worker_group="group-1",
            fencing_token=1,
            accelerators="2xcpu",
            started_us=now_us,
            ended_us=now_us + 4_000_000,
        )


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_show_prints_how_the_paid_time_was_used(project):
    shown = run("sweep", "show", "sweep-aa")
    assert shown.exit_code == 0, shown.output
    assert "paid 8.0, busy 6.0, waiting for data 0.4" in shown.output
    assert "1 *" in shown.output
    content = json.loads(run("sweep", "show", "sweep-aa", "--json").output)
    assert content["time_use"] == {"paid": 8.0, "busy": 6.0, "data_wait": 0.4}
    assert [trial["is_winner"] for trial in content["trials"]] == [False, True]


def test_list_names_a_sweep_whose_driver_died_interrupted(project):
    content = json.loads(run("sweep", "list", "--json").output)
    assert [(view["sweep_id"], view["state"]) for view in content] == [
        ("sweep-bb", "interrupted"),
        ("sweep-aa", "finished"),
    ]
    assert "interrupted" in run("sweep", "list").output


def test_no_member_of_an_ensemble_is_listed_as_a_winner(project):
    ledger = open_ledger(sqlite_url(Places(project).ledger_file), FakeClock(SystemClock().now_us()))
    insert_sweep(ledger, "sweep-cc", state="finished", winner=0, members="sha256:2")
    ledger.close()
    listed = {line.split()[0]: line for line in run("sweep", "list").output.splitlines() if line.startswith("sweep-")}
    assert "trial 1" in listed["sweep-aa"]
    assert "none, members" in listed["sweep-cc"]
    shown = run("sweep", "show", "sweep-cc").output
    assert "members of an ensemble" in shown
    assert "0 *" not in shown


def test_compare_says_what_differs(project):
    rows = {row["what"]: row for row in json.loads(run("sweep", "compare", "sweep-aa", "sweep-bb", "--json").output)}
    assert rows["product"]["is_equal"]
    assert (rows["winner"]["first"], rows["winner"]["second"]) == (1, None)


def test_stop_has_nothing_to_do_on_a_finished_sweep(project):
    assert "finished: nothing to stop" in run("sweep", "stop", "sweep-aa").output


def test_an_unknown_sweep_is_said_so(project):
    result = run("sweep", "show", "sweep-zz")
    assert "no sweep 'sweep-zz'" in str(result.exception)


def test_an_unknown_product_is_said_so(project):
    result = run("sweep", "launch", "nothing", "--dry-run")
    assert "unknown product 'nothing'" in str(result.exception)


SPEC = (
    "{version: 1, product: tiny, dataset: people, budget: research, objective: {metric: loss}, trials: 2, epochs: 3, "
    "space: {x: {low: 0.1, high: 1.0}}}"
)


def test_a_sweep_whose_trainer_is_gone_is_not_resumed_and_said_so(project):
    (project / "training").mkdir()
    (project / "training" / "tiny.yaml").write_text(SPEC)
    result = run("sweep", "resume", "sweep-bb")
    assert "tiny.py cannot be read" in str(result.exception)


@pytest.mark.parametrize(
    "words", [("sweep", "resume", "sweep-cc"), ("trainer", "run", "tiny", "--trial", "sweep-cc/0")]
)
def test_members_of_an_ensemble_are_not_gone_on_with_as_if_they_were_a_search(project, words):
    (project / "training").mkdir()
    (project / "training" / "tiny.py").write_text("def model(params): ...\ndef train(worker, params): params['x']\n")
    (project / "training" / "tiny.yaml").write_text(SPEC)
    ledger = open_ledger(sqlite_url(Places(project).ledger_file), FakeClock(SystemClock().now_us()))
    insert_sweep(ledger, "sweep-cc", state="stopped", winner=None, members="sha256:2")
    ledger.close()
    result = run(*words)
    assert "trains the members of an ensemble" in str(result.exception)
    assert "mlops sweep launch tiny" in result.exception.hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep", "launch", "tiny"), "budget: unknown budget 'research'"),
        (("sweep", "list", "tinny"), "unknown product 'tinny'"),
        (("trainer", "run", "tiny", "--set", "y=1"), "the trainer does not read 'y'"),
        (("trainer", "run", "tiny", "--set", "x=["), "'[' is no YAML value"),
        (("trainer", "run", "tiny", "--trial", "sweep-aa"), "is not of the form SWEEP/NUMBER"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(project, words, said):
    (project / "training").mkdir()
    (project / "training" / "tiny.py").write_text("def model(params): ...\ndef train(worker, params): params['x']\n")
    (project / "training" / "tiny.yaml").write_text(SPEC)
    fault = run(*words).exception
    assert isinstance(fault, ProjectError)
    assert said in "\n".join([fault.message, *fault.items])


def test_stop_without_a_local_ray_says_so(project):
    assert "no local Ray is running" in run("stop").output


@pytest.mark.system
@pytest.mark.skipif(not is_podman_installed(), reason="podman is not installed")
@pytest.mark.parametrize("words", [("stop",), ("doctor", "--processes")])
def test_looking_for_what_killed_probes_left_leaves_no_link_to_podmans_folder(project, words):
    target = project / ".mlops" / "serving" / "podman"
    target.mkdir(parents=True)
    assert run(*words).exit_code == 0
    links = [path for path in Path(tempfile.gettempdir()).glob("mlops-*") if path.is_symlink()]
    assert target.resolve() not in [link.readlink() for link in links]
