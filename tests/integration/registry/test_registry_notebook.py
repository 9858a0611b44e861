"""`notebooks/review.ipynb` runs from top to bottom on what the mirror wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from mlops.places import Places
from mlops.registry.mirror import DatasetReference
from mlops.registry.mlflow_runs import open_mirror

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "review.ipynb"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own client, jupyter_client


def fill(root: Path, *, trials: int) -> None:
    (root / "datasets.dvc").write_text("outs: []\n", encoding="utf-8")
    with open_mirror(Places(root)) as mirror:
        sweep = mirror.start_sweep(
            "sweep-1",
            key="sweep-1",
            tags={"mlops.commit": "c0ffee"},
            params={"trials": trials},
            dataset=DatasetReference(name="churn", digest="sha256:" + "ab" * 32),
            product="churn",
            at_us=1_800_000_000_000_000,
        )
        for number in range(trials):
            at_us = 1_800_000_000_000_000 + number * 500_000
            params = {"learning_rate": 0.01 * (number + 1), "activation": "relu" if number % 2 else "tanh"}
            trial = mirror.start_trial(
                sweep, key=f"sweep-1/{number}", name=f"trial {number}", params=params, tags={}, at_us=at_us
            )
            for epoch in range(3):
                loss = math.nan if number == 3 else 1 / (epoch + number + 1)
                mirror.log_metrics(trial, {"loss": loss, "accuracy": 0.7}, step=epoch, at_us=at_us + epoch)
            mirror.end(trial, "FINISHED", at_us=at_us + 1_000_000)
        mirror.end(sweep, "FINISHED")
        assert mirror.flush(timeout_seconds=60)


def execute(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"MLOPS_PROJECT": str(root), "MLOPS_PRODUCT": "churn", "HOME": str(root)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    return NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": root}}
    ).execute()


def texts(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(str(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_the_notebook_compares_the_trials_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, trials=4)
    notebook = execute(tmp_path, monkeypatch)
    said = texts(notebook)
    assert "sweep-1: 4 trials, 4 finished" in said
    assert "commit c0ffee" in said
    best = next(cell for cell in notebook.cells if "best.to_string" in cell.source)
    assert "trial 2" in best.outputs[0]["text"]  # lowest last loss; NaN of trial 3 is not the best
    images = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(images) == 3


def test_the_notebook_says_so_when_there_is_no_sweep_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "datasets.dvc").write_text("outs: []\n", encoding="utf-8")
    with open_mirror(Places(tmp_path)) as mirror:
        mirror.end(mirror.start_sweep("alone", key="alone", tags={}, params={}, product="churn"), "FINISHED")
    with pytest.raises(CellExecutionError, match="no trial of churn yet"):
        execute(tmp_path, monkeypatch)


def test_the_notebook_uses_public_names_only_and_holds_no_output():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "import mlops" not in code
    assert "._" not in code
    assert not any(cell.get("outputs") for cell in notebook.cells)
