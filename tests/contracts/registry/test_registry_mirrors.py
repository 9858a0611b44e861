"""One suite for both mirrors: the in-memory one and the one that writes to a real MLflow store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops.registry.mirror import DatasetReference, MemoryMirror, Mirror
from mlops.registry.mlflow_door import open_client
from mlops.registry.mlflow_runs import RunMirror

DATASET = DatasetReference(name="income", digest="sha256:" + "ab" * 32, revision="12.dir", source="datasets.dvc")


@dataclass(frozen=True)
class SeenRun:
    """What a person sees of one run, whichever mirror it is in."""

    name: str
    parent: str | None
    """Name of the parent."""
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    dataset: str | None
    files: dict[str, bytes]


@dataclass
class Case:
    """A way to make mirrors of one store, and to see what they wrote."""

    make: Callable[[], Mirror]
    see: Callable[[], dict[str, SeenRun]]


def see_memory(mirror: MemoryMirror) -> dict[str, SeenRun]:
    found = {}
    for run in mirror.runs.values():
        metrics: dict[str, list[tuple[int, float]]] = {}
        for name, value, step in run.metrics:
            metrics.setdefault(name, []).append((step, value))
        found[run.name] = SeenRun(
            name=run.name,
            parent=mirror.runs[run.parent].name if run.parent else None,
            status=run.status,
            params=dict(run.params),
            tags=dict(run.tags),
            metrics=metrics,
            dataset=run.dataset.name if run.dataset else None,
            files=dict(run.files),
        )
    return found


def see_mlflow(uri: str, artifacts: Path) -> dict[str, SeenRun]:
    client = open_client(uri, artifacts=artifacts)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.info.run_id: run for run in client.search_runs(experiments)}
    found = {}
    for run in runs.values():
        metrics = {
            name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        parent = run.data.tags.get("mlflow.parentRunId")
        found[run.info.run_name] = SeenRun(
            name=run.info.run_name,
            parent=runs[parent].info.run_name if parent else None,
            status=run.info.status,
            params=dict(run.data.params),
            tags={name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
            metrics=metrics,
            dataset=run.inputs.dataset_inputs[0].dataset.name if run.inputs.dataset_inputs else None,
            files={path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.txt")},
        )
    return found


@pytest.fixture(params=["memory", "mlflow"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    if request.param == "memory":
        memory = MemoryMirror()
        yield Case(make=lambda: memory, see=lambda: see_memory(memory))
        return
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.sqlite", tmp_path / "artifacts"
    made: list[RunMirror] = []

    def make() -> Mirror:
        made.append(RunMirror(uri, artifacts))
        return made[-1]

    def see() -> dict[str, SeenRun]:
        assert all(mirror.flush(timeout_seconds=60) for mirror in made)
        return see_mlflow(uri, artifacts)

    yield Case(make=make, see=see)
    for mirror in made:
        mirror.close(timeout_seconds=30)


def start(mirror: Mirror, **more: Any) -> str:
    given = {"key": "s", "tags": {"mlops.commit": "c0ffee", "note": "own"}, "params": {"trials": 2}, "dataset": DATASET}
    return mirror.start_sweep("sweep", product="income", **{**given, **more})


def start_trial(mirror: Mirror, sweep: str, *, number: int = 0) -> str:
    return mirror.start_trial(
        sweep, key=f"s/{number}", name=f"trial {number}", params={"width": 8}, tags={"mlops.x": "1"}
    )


def test_a_trial_is_a_child_and_carries_the_dataset_and_the_machines_tags_of_its_sweep(case: Case):
    mirror = case.make()
    trial = start_trial(mirror, start(mirror))
    mirror.log_metrics(trial, {"loss": 0.5, "accuracy": 0.75}, step=0)
    mirror.log_metrics(trial, {"loss": 0.25}, step=1)
    mirror.end(trial, "FINISHED")
    seen = case.see()
    assert seen["trial 0"].parent == "sweep"
    assert (seen["sweep"].status, seen["trial 0"].status) == ("RUNNING", "FINISHED")
    assert (seen["sweep"].dataset, seen["trial 0"].dataset) == ("income", "income")
    assert seen["trial 0"].params == {"width": "8"}
    assert seen["trial 0"].metrics == {"loss": [(0, 0.5), (1, 0.25)], "accuracy": [(0, 0.75)]}
    assert seen["trial 0"].tags["mlops.commit"] == "c0ffee"
    assert seen["trial 0"].tags["mlops.x"] == "1"
    assert "note" not in seen["trial 0"].tags


def test_saying_everything_twice_is_the_same_as_once(case: Case):
    for _ in range(2):
        mirror = case.make()
        sweep = start(mirror)
        trial = start_trial(mirror, sweep)
        mirror.set_tags(trial, {"mlops.state": "complete"})
        mirror.end(trial, "FINISHED")
        mirror.end(sweep, "FINISHED")
        seen = case.see()
    assert sorted(seen) == ["sweep", "trial 0"]
    assert {run.status for run in seen.values()} == {"FINISHED"}
    assert seen["trial 0"].tags["mlops.state"] == "complete"


def test_a_resumed_sweep_goes_on_in_its_run_and_keeps_first_parameters(case: Case):
    first = case.make()
    first.end(start_trial(first, start(first)), "KILLED")
    case.see()
    again = case.make()
    sweep = start(again, params={"trials": 99})
    start_trial(again, sweep)
    start_trial(again, sweep, number=1)
    seen = case.see()
    assert sorted(seen) == ["sweep", "trial 0", "trial 1"]
    assert seen["sweep"].params == {"trials": "2"}
    assert (seen["trial 0"].status, seen["trial 1"].parent) == ("RUNNING", "sweep")


def test_not_a_number_and_infinity_are_numbers_too(case: Case):
    mirror = case.make()
    run = start(mirror)
    mirror.log_metrics(run, {"loss": math.nan}, step=0)
    mirror.log_metrics(run, {"other": math.inf}, step=0)
    metrics = case.see()["sweep"].metrics
    assert math.isnan(metrics["loss"][0][1])
    assert metrics["other"][0][1] > 1e300  # MLflow keeps infinity as the largest float


def test_a_file_may_be_deleted_right_after_it_was_logged(case: Case, tmp_path: Path):
    mirror = case.make()
    run = start(mirror)
    single, folder = tmp_path / "report.txt", tmp_path / "many"
    single.write_bytes(b"report")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_bytes(b"a")
    mirror.log_file(run, single, folder="gate")
    mirror.log_file(run, folder, folder="gate")
    single.unlink()
    (folder / "inner" / "a.txt").unlink()
    assert case.see()["sweep"].files == {"gate/report.txt": b"report", "gate/inner/a.txt": b"a"}


def test_a_run_can_be_found_by_its_handle(case: Case):
    mirror = case.make()
    run = start(mirror)
    found = mirror.find_mlflow_run(run, timeout_seconds=60)
    assert found is not None
    assert len(found) == 32
    assert mirror.find_mlflow_run("mirror-" + "0" * 32, timeout_seconds=60) is None


def test_equal_keys_give_equal_handles_and_others_differ(case: Case):
    mirror = case.make()
    first = start(mirror)
    assert start(mirror) == first
    assert start_trial(mirror, first) != start_trial(mirror, first, number=1)
