"""The main job on real data: what the issue of a release promises, on `income` released from a fresh clone."""

import json
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest


def query(clone: Any, sql: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{clone.folder / '.mlops' / 'ledger.sqlite'}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def test_a_killed_release_went_on_without_repeating_finished_trials(income_clone: Any) -> None:
    assert len(income_clone.ended_before_kill) >= 2
    attempts = dict(query(income_clone, "SELECT number, COUNT(*) FROM attempts GROUP BY number"))
    assert {attempts[number] for number in income_clone.ended_before_kill} == {1}
    begun = query(income_clone, "SELECT COUNT(*) FROM events WHERE kind = 'sweep.resumed'")
    assert begun == [(1,)]


def test_the_released_model_is_good_and_the_report_shows_the_price(income_clone: Any) -> None:
    shown = json.loads(income_clone.said[1])
    checks = {check["name"]: check for check in shown["checks"]}
    assert shown["verdict"] == "PASS"
    assert checks["accuracy"]["claims"][0]["estimate"] >= 0.84
    assert query(income_clone, "SELECT COUNT(DISTINCT candidate) FROM gate_looks") == [(1,)]
    page = next((income_clone.folder / ".mlops" / "evidence").glob("*/gate.html")).read_text()
    assert "price of fairness" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # self-contained: nothing is fetched
    assert "https://" not in page


def test_nothing_is_left_in_the_home_folder(income_clone: Any) -> None:
    assert income_clone.left_at_home == []


def test_two_trials_overlapped_in_time(income_clone: Any) -> None:
    spans = query(income_clone, "SELECT number, started_us, ended_us FROM attempts WHERE ended_us IS NOT NULL")
    overlaps = [
        (first, second)
        for first, start, end in spans
        for second, other_start, other_end in spans
        if first < second and start < other_end and other_start < end
    ]
    assert overlaps


def test_the_budget_paid_for_every_group_and_balances(income_clone: Any) -> None:
    budget = json.loads(income_clone.check("budget", "show", "--json"))
    assert json.dumps(budget).count("reserved") > 0
    charged = query(income_clone, "SELECT SUM(charged_micro_usd), SUM(reserved_micro_usd) FROM leases")
    assert charged[0][0] > 0


def test_released_again_everything_is_reused_in_seconds(income_clone: Any) -> None:
    income_clone.check("release", "income")  # other tests may have committed: a new commit's source is checked again
    began = time.monotonic()
    again = json.loads(income_clone.check("release", "income", "--json"))["income"]
    print(f"second release: {time.monotonic() - began:.1f} s")
    assert [name for name, step in again.items() if not step["is_reused"]] == []


def test_mlflow_shows_the_sweep_its_trials_and_the_dataset(income_clone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlops.places import Places
    from mlops.registry.mlflow_door import artifact_root, open_client, tracking_uri

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = Places(income_clone.folder)
    client = open_client(tracking_uri(places), artifacts=artifact_root(places))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=500)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(parents) == 1
    assert len(children) == 10
    complete = [run for run in children if run.info.status == "FINISHED"]
    assert complete
    for run in complete:
        assert {"accuracy", "loss", "equalized_odds_gap_sex"} <= set(run.data.metrics)
        assert len(client.get_metric_history(run.info.run_id, "loss")) > 1
        assert run.inputs.dataset_inputs[0].dataset.digest


def test_a_candidate_that_fails_the_gate_registers_nothing(income_clone: Any) -> None:
    policy = income_clone.folder / "evaluation" / "income.yaml"
    kept = policy.read_text()
    before = income_clone.check("model", "list", "--json")
    try:
        policy.write_text(kept.replace("minimum: 0.83", "minimum: 0.95", 1))
        done = income_clone.run("release", "income", "--allow-dirty")
    finally:
        policy.write_text(kept)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "accuracy" in done.stderr
    assert "Traceback" not in done.stderr
    assert income_clone.check("model", "list", "--json") == before


def test_a_dirty_tree_is_refused_with_the_files(income_clone: Any) -> None:
    readme = income_clone.folder / "README.md"
    kept = readme.read_text()
    try:
        readme.write_text(kept + "\nchanged\n")
        done = income_clone.run("release", "income")
    finally:
        readme.write_text(kept)
    assert done.returncode == 1
    assert "README.md" in done.stderr


def test_bad_input_is_one_sentence(income_clone: Any) -> None:
    cases = {
        ("release", "nobody"): (2, "unknown product 'nobody'"),
        ("release",): (2, "name one PRODUCT"),
        ("release", "--changed", "nonsense"): (2, "BASE..HEAD"),
        ("release", "--changed", "nope..HEAD"): (6, "no commit 'nope'"),
    }
    for arguments, (code, part) in cases.items():
        done = income_clone.run(*arguments)
        assert (done.returncode, part in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
