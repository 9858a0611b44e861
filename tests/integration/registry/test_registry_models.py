"""Model versions against a real MLflow store on SQLite."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest

from mlops.errors import ProvenanceError
from mlops.registry.mlflow_models import ModelRegistry
from mlops.registry.mlflow_runs import RunMirror


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(registry, run id, handle) of one store with one run."""
    root = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{root}/mlflow.sqlite"
    with RunMirror(uri, root / "artifacts") as mirror:
        handle = mirror.start_sweep("sweep", key="sweep-1", tags={}, params={}, product="income")
        run_id = mirror.find_mlflow_run(handle, timeout_seconds=60)
    return ModelRegistry(uri, root / "artifacts"), run_id, handle


def register(store: Any, product: str, candidate: Path, contract: Any, **more: Any) -> Any:
    registry, run_id, _ = store
    given = {"run_id": run_id, "tags": {"mlops.gate": "sha256:1"}, "gate_report": None, **more}
    return registry.register_version(product, candidate_folder=candidate, contract=contract, **given)


def test_a_candidate_becomes_one_version_however_often_it_is_registered(store: Any, make_candidate: Any, contract: Any):
    first = register(store, "once", make_candidate(1.0), contract)
    again = register(store, "once", make_candidate_again(make_candidate), contract)
    other = register(store, "once", make_candidate(2.0), contract)
    assert (first.number, again.number, other.number) == (1, 1, 2)
    assert again.candidate == first.candidate != other.candidate
    assert [version.number for version in store[0].list_versions("once")] == [2, 1]


def make_candidate_again(make_candidate: Any) -> Path:
    """The folder that `make_candidate(1.0)` made."""
    return Path(str(make_candidate(3.0)).replace("3.0", "1.0"))


def test_two_processes_that_register_the_same_candidate_at_once_make_one_version(
    store: Any, make_candidate: Any, contract: Any
):
    candidate = make_candidate(1.0)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(register(store, "race", candidate, contract).number))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # mlflow.pyfunc about its own types, at import
def test_the_model_folder_loads_with_mlflow_and_answers_as_onnx_does(
    store: Any, make_candidate: Any, contract: Any, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    version = register(store, "loads", make_candidate(0.5), contract)
    files = {path.name for path in version.source_folder.iterdir()}
    assert files == {
        "MLmodel", "model.onnx", "weights.safetensors", "contract.json", "trainer.py", "requirements.txt"
    }  # fmt: skip
    model = mlflow.pyfunc.load_model(str(version.source_folder))
    answer = model.predict(
        {"age": numpy.array([30.0, 1.0], dtype=numpy.float32), "job": numpy.array([1, 0], dtype=numpy.int64)}
    )
    assert numpy.allclose(answer["logits"], [[31.0, 0.5], [1.0, 0.5]])
    inputs = {spec.name: (spec.type.name, spec.shape) for spec in model.metadata.get_input_schema().inputs}
    assert inputs == {"age": ("float32", (-1,)), "job": ("int64", (-1,))}


def test_a_model_that_does_not_export_is_registered_without_a_flavour(store: Any, make_candidate: Any, contract: Any):
    candidate = make_candidate(0.25)
    (candidate / "model.onnx").unlink()
    with pytest.raises(ProvenanceError, match=r"has no model\.onnx"):
        register(store, "looping", candidate, contract)
    (candidate / "params.json").write_text(json.dumps({"params": {}, "export": "torch"}), encoding="utf-8")
    version = register(store, "looping", candidate, contract)
    assert (version.source_folder / "weights.safetensors").is_file()
    assert "flavors: {}" in (version.source_folder / "MLmodel").read_text(encoding="utf-8")


def test_nothing_in_the_model_folder_is_a_pickle(store: Any, make_candidate: Any, contract: Any):
    version = register(store, "plain", make_candidate(0.5), contract)
    for path in version.source_folder.rglob("*"):
        assert path.suffix not in {".pkl", ".pt", ".pth", ".bin"}
        assert not path.read_bytes().startswith(b"\x80\x04")


def test_a_version_carries_dataset_gate_and_candidate(store: Any, make_candidate: Any, contract: Any, tmp_path: Path):
    report = tmp_path / "report"
    report.mkdir()
    (report / "gate.html").write_text("<b>PASS</b>", encoding="utf-8")
    version = register(store, "tags", make_candidate(0.5), contract, gate_report=report)
    assert version.tags["mlops.dataset_digest"] == contract["dataset"]["digest"]
    assert version.tags["mlops.gate"] == "sha256:1"
    assert (version.source_folder.parent / "gate" / "gate.html").read_text(encoding="utf-8") == "<b>PASS</b>"


def test_a_mirror_handle_names_the_run_too(store: Any, make_candidate: Any, contract: Any):
    version = register(store, "handle", make_candidate(0.5), contract, run_id=store[2])
    assert version.run_id == store[1]


def test_aliases(store: Any, make_candidate: Any, contract: Any):
    registry = store[0]
    for bias in (1.0, 2.0):
        register(store, "named", make_candidate(bias), contract)
    registry.set_alias("named", "champion", number=1)
    registry.set_alias("named", "latest", number=2)
    assert registry.find_version("named", "champion").number == 1
    assert registry.find_version("named", "latest").number == 2
    assert registry.find_version("named", 1).aliases == ("champion",)
    assert registry.find_version("named", "nobody") is None
    assert registry.find_version("unknown", 1) is None
    with pytest.raises(ProvenanceError, match="newest"):
        registry.set_alias("named", "latest", number=1)
    with pytest.raises(ProvenanceError, match="no version 9"):
        registry.set_alias("named", "champion", number=9)


def test_a_version_can_be_fetched(store: Any, make_candidate: Any, contract: Any, tmp_path: Path):
    version = register(store, "fetched", make_candidate(0.5), contract)
    fetched = store[0].download(version, target=tmp_path / "here")
    assert (fetched / "model.onnx").read_bytes() == (version.source_folder / "model.onnx").read_bytes()
    with pytest.raises(ProvenanceError, match="exists"):
        store[0].download(version, target=tmp_path / "here")
    with pytest.raises(ProvenanceError, match="cannot be written"):
        store[0].download(version, target=fetched / "model.onnx" / "below")


def test_an_unknown_run_or_half_a_candidate_registers_nothing(
    store: Any, make_candidate: Any, contract: Any, tmp_path: Path
):
    with pytest.raises(ProvenanceError):
        register(store, "nothing", make_candidate(0.5), contract, run_id="0" * 32)
    with pytest.raises(ProvenanceError, match="does not hold run"):
        register(store, "nothing", make_candidate(0.6), contract, run_id="mirror-" + "0" * 32)
    half = make_candidate(0.7)
    (half / "weights.safetensors").unlink()
    with pytest.raises(ProvenanceError, match=r"weights\.safetensors"):
        register(store, "nothing", half, contract)
    assert store[0].list_versions("nothing") == ()


def test_a_damaged_store_is_one_sentence(tmp_path: Path):
    (tmp_path / "mlflow.sqlite").write_bytes(b"not a database at all, but long enough to be read" * 100)
    registry = ModelRegistry(f"sqlite:///{tmp_path}/mlflow.sqlite", tmp_path / "artifacts")
    with pytest.raises(ProvenanceError, match="cannot be opened"):
        registry.list_versions("income")
