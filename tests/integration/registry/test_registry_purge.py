"""Removing versions and artefacts from a real MLflow store; other versions and runs stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops.places import Places
from mlops.registry.mlflow_door import artifact_root, tracking_uri
from mlops.registry.mlflow_models import ModelRegistry
from mlops.registry.mlflow_purge import purge_mlflow
from mlops.registry.mlflow_runs import open_mirror


def test_versions_and_artefacts_go_and_the_rest_stays(
    tmp_path: Path, make_candidate: Any, contract: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    places = Places(tmp_path)
    registry = ModelRegistry(tracking_uri(places), artifact_root(places))
    handles, runs = [], []
    report = tmp_path / "gate.html"
    report.write_text("a row of somebody")
    with open_mirror(places) as mirror:
        for number in (1, 2):
            handles.append(mirror.start_sweep("sweep", key=f"sweep-{number}", tags={}, params={}, product="income"))
            mirror.log_file(handles[-1], report, folder="gate")
        runs = [mirror.find_mlflow_run(handle, timeout_seconds=60) for handle in handles]
    for number, run in enumerate(runs, start=1):
        registry.register_version(
            "income", run_id=run or "", candidate_folder=make_candidate(float(number)), contract=contract, tags={},
            gate_report=report,
        )  # fmt: skip
    before = list(places.mlflow_folder.rglob("gate.html"))
    assert len(before) == 2
    receipts = purge_mlflow(places, models=[("income", 1)], runs=[handles[0]])
    assert [(receipt.is_gone, receipt.reason) for receipt in receipts] == [(True, ""), (True, "")]
    assert [version.number for version in registry.list_versions("income")] == [2]
    (left,) = places.mlflow_folder.rglob("gate.html")
    assert str(runs[1]) in str(left)
    again = purge_mlflow(places, models=[("income", 1)], runs=[handles[0], "no-such-run-anywhere"])
    assert [receipt.reason for receipt in again[:2]] == ["was not here", "was not here"]
    assert not again[2].is_gone, "what MLflow does not know is not said to be gone"
    registry.register_version(
        "income",
        run_id=runs[1] or "",
        candidate_folder=make_candidate(3.0),
        contract=contract,
        tags={},
        gate_report=None,
    )
    assert registry.list_versions("income")[0].number == 3, "a purged number is never given again"
