"""MLflow away, slow or refusing: nothing waits, nothing is lost."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from mlops.registry.mlflow_door import open_client
from mlops.registry.mlflow_runs import RunMirror


def fill(mirror: RunMirror, *, trials: int) -> None:
    sweep = mirror.start_sweep("sweep", key="s", tags={}, params={}, product="income")
    for number in range(trials):
        trial = mirror.start_trial(sweep, key=f"s/{number}", name=f"trial {number}", params={"lr": 0.1}, tags={})
        mirror.log_metrics(trial, {"loss": float(number)}, step=0)
        mirror.end(trial, "FINISHED")
    mirror.end(sweep, "FINISHED")


def count_runs(uri: str) -> dict[str, int]:
    client = open_client(uri, artifacts=None)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    counts: dict[str, int] = {}
    for run in client.search_runs(experiments):
        counts[run.info.status] = counts.get(run.info.status, 0) + 1
    return counts


def test_a_server_that_is_away_delays_nothing_and_the_next_mirror_sends_what_it_lacks(tmp_path: Path):
    spool = tmp_path / "spool"
    began = time.monotonic()
    away = RunMirror("http://127.0.0.1:9", None, spool_folder=spool)  # the discard port: nobody listens
    fill(away, trials=50)
    said = time.monotonic() - began
    assert said < 1.0
    assert away.flush(timeout_seconds=0.5) is False
    assert away.find_mlflow_run("mirror-" + "0" * 32, timeout_seconds=0.1) is None
    began = time.monotonic()
    away.close(timeout_seconds=0.5)
    assert time.monotonic() - began < 3.0
    uri = f"sqlite:///{tmp_path}/mlflow.sqlite"
    with RunMirror(uri, tmp_path / "artifacts", spool_folder=spool) as back:
        back.start_sweep("another", key="t", tags={}, params={}, product="income")
        assert back.flush(timeout_seconds=60)
    assert count_runs(uri) == {"FINISHED": 51, "RUNNING": 1}
    assert list(spool.glob("*.jsonl")) == []


def test_one_thing_that_mlflow_refuses_does_not_hold_back_the_rest(tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/mlflow.sqlite"
    with RunMirror(uri, tmp_path / "artifacts") as mirror:
        run = mirror.start_sweep("sweep", key="s", tags={}, params={"a b?": 1, "good": 2}, product="income")
        mirror.log_metrics(run, {"no@good": 1.0, "loss": 0.5}, step=0)
        mirror.log_metrics("0" * 32, {"loss": 0.5}, step=0)  # a run that was deleted
        mirror.end(run, "FINISHED")
        assert mirror.flush(timeout_seconds=60)
        found = mirror.find_mlflow_run(run)
    data = open_client(uri, artifacts=None).get_run(str(found)).data
    assert data.metrics == {"loss": 0.5}
    assert data.params == {"good": "2"}
    rejected = (tmp_path / "spool" / "rejected.log").read_text(encoding="utf-8")
    assert "no@good" in rejected


def test_every_trial_of_a_long_sweep_arrives(tmp_path: Path, test_scale: int):
    uri = f"sqlite:///{tmp_path}/mlflow.sqlite"
    trials = 30 * test_scale
    with RunMirror(uri, tmp_path / "artifacts") as mirror:
        fill(mirror, trials=trials)
        assert mirror.flush(timeout_seconds=600)
    assert count_runs(uri) == {"FINISHED": trials + 1}


def test_a_run_whose_parameters_were_not_taken_is_completed_and_not_created_twice(tmp_path: Path):
    file = tmp_path / "mlflow.sqlite"
    open_client(f"sqlite:///{file}", artifacts=None)
    with contextlib.closing(sqlite3.connect(file)) as store:
        store.execute("CREATE TRIGGER broken BEFORE INSERT ON params BEGIN DELETE FROM nowhere; END")
        with RunMirror(f"sqlite:///{file}", tmp_path / "artifacts") as mirror:
            sweep = mirror.start_sweep("sweep", key="s", tags={}, params={}, product="income")
            trial = mirror.start_trial(sweep, key="s/0", name="trial 0", params={"lr": 0.1}, tags={})
            assert mirror.flush(timeout_seconds=3) is False
            store.execute("DROP TRIGGER broken")
            assert mirror.flush(timeout_seconds=60)
            found = mirror.find_mlflow_run(trial)
    assert count_runs(f"sqlite:///{file}") == {"RUNNING": 2}
    assert open_client(f"sqlite:///{file}", artifacts=None).get_run(str(found)).data.params == {"lr": "0.1"}
