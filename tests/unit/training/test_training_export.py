"""The candidate folder: same bytes from any folder, answers like torch, no path of this machine inside."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlops.errors import TrainingError
from mlops.training.artefact import open_artefact
from mlops.training.candidate import load_candidate
from mlops.training.contract import Contract, Output
from mlops.training.export import ExportRequest, export_candidate, load_parity, round_up
from mlops.training.loader import render_loader
from mlops.training.trainer import load_trainer


@pytest.fixture
def make_request(make_task, contract, source):
    def make(folder: Path, **changes) -> ExportRequest:
        folder.mkdir(parents=True)
        task = make_task()
        trainer = folder / "tiny.py"
        trainer.write_text(Path(task.trainer_file).read_text())
        params = {"learning_rate": 0.05, "dropout": 0.2}
        torch.manual_seed(1)
        module = load_trainer(trainer).model({**params, "columns": contract.column_sizes(), "classes": 2})
        save_file(module.state_dict(), folder / "weights.safetensors")
        values = {
            "trainer_file": trainer,
            "weights_file": folder / "weights.safetensors",
            "params": params,
            "contract": contract,
            "validation": {"age": source.age, "plan": source.plan},
            "candidates_folder": folder / "candidates",
            "sweep_id": "sweep-1",
            "trial": 3,
            "seed": 9,
        }
        return ExportRequest(**{**values, **changes})

    return make


def test_two_folders_give_one_digest_and_no_path_inside(make_request, tmp_path):
    first = export_candidate(make_request(tmp_path / "one"))
    second = export_candidate(make_request(tmp_path / "two" / "deeper"))
    assert first.digest == second.digest
    content = first.onnx_file.read_bytes()
    for word in (b"tmp", b"/work", b".py", b"def forward"):
        assert word not in content
    model = onnx.load(first.onnx_file)
    assert [value.name for value in model.graph.input] == ["age", "plan"]
    assert [value.name for value in model.graph.output] == ["logits", "probabilities"]


def test_the_onnx_answers_any_batch_size_like_the_rebuilt_module(make_request, tmp_path, source):
    candidate = export_candidate(make_request(tmp_path / "one"))
    module = load_candidate(candidate.folder).load_module()
    session = onnxruntime.InferenceSession(candidate.onnx_file.read_bytes(), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 57):
        columns = {"age": source.age[:rows], "plan": source.plan[:rows]}
        logits, probabilities = session.run(None, {name: column.numpy() for name, column in columns.items()})
        with torch.no_grad():
            expected = module(columns)
        assert torch.allclose(torch.tensor(logits), expected, atol=1e-5)
        assert torch.allclose(torch.tensor(probabilities), expected.softmax(1), atol=1e-5)


def test_the_folder_says_where_it_comes_from(make_request, tmp_path, contract):
    candidate = export_candidate(make_request(tmp_path / "one"))
    assert candidate.folder.name == candidate.digest.removeprefix("sha256:")
    assert json.loads((candidate.folder / "params.json").read_text()) == {
        "params": {"learning_rate": 0.05, "dropout": 0.2},
        "sweep": "sweep-1",
        "trial": 3,
        "seed": 9,
    }
    assert candidate.contract == contract
    assert load_parity(candidate)["rows"] == 200


def test_int8_weights_are_rounded_before_they_are_judged_and_packed(make_request, tmp_path, source):
    full = export_candidate(make_request(tmp_path / "full"))
    first, second = (export_candidate(make_request(tmp_path / name, weights="int8")) for name in ("one", "two"))
    assert first.digest == second.digest != full.digest
    assert load_parity(first)["max_abs_difference"] <= load_parity(first)["bound"] == 1e-5
    plain, rounded = load_file(full.folder / "weights.safetensors"), load_file(first.folder / "weights.safetensors")
    for name, tensor in rounded.items():
        step = tensor.abs().max() / 127 if tensor.dim() > 1 else 0
        assert (tensor - plain[name]).abs().max() <= step * 0.51, name
        assert tensor.dim() < 2 or len(tensor.unique()) <= 255
    types = {item.data_type for item in onnx.load(first.onnx_file).graph.initializer if len(item.dims) > 1}
    assert types == {onnx.TensorProto.INT8}
    columns = {"age": source.age, "plan": source.plan}
    session = onnxruntime.InferenceSession(first.onnx_file.read_bytes(), providers=["CPUExecutionProvider"])
    whole, _ = session.run(None, {name: column.numpy() for name, column in columns.items()})
    alone, _ = session.run(None, {name: column[:1].numpy() for name, column in columns.items()})
    assert abs(whole[0] - alone[0]).max() <= 1e-6, "the rows of one request do not change each other's answers"


def _with_forward(request: ExportRequest, line: str) -> ExportRequest:
    text = request.trainer_file.read_text()
    assert "        return self.layers" in text
    request.trainer_file.write_text(
        text.replace("        return self.layers", f"        {line}\n        return self.layers")
    )
    return replace(request, export="torch")


def test_a_model_that_does_not_export_becomes_a_candidate_without_onnx(make_request, tmp_path, source):
    loop = "while bool((columns['age'] > 150).any()): columns = columns | {'age': columns['age'].clamp(max=150)}"
    request = _with_forward(make_request(tmp_path / "one"), loop)
    with pytest.raises(TrainingError, match="cannot be exported"):
        export_candidate(replace(request, export="onnx"))
    candidate = export_candidate(request)
    assert not candidate.onnx_file.exists() and candidate.artefact_file.name == "weights.safetensors"
    assert load_candidate(candidate.folder).export == "torch"
    parity = load_parity(candidate)
    assert parity["rows"] == 200 and parity["max_abs_difference"] <= parity["bound"]
    columns = {"age": source.age[:5].numpy(), "plan": source.plan[:5].numpy()}
    with torch.no_grad():
        expected = candidate.load_module()({name: torch.tensor(value) for name, value in columns.items()})
    found, _ = open_artefact(candidate.folder).run(("logits", "probabilities"), columns)
    assert abs(found - expected.numpy()).max() <= 1e-6


UNFIT = {
    "rows that change each other's answers": ("columns['age'] = columns['age'] - columns['age'].mean()", "other rows"),
    "no number": ("columns['age'] = columns['age'] / 0 * 0", "NaN or infinity"),
    "an error": ("raise ValueError('broken')", "does not run"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_torch_does_not_serve(make_request, tmp_path, name):
    line, text = UNFIT[name]
    request = _with_forward(make_request(tmp_path / "one"), f"columns = dict(columns); {line}")
    with pytest.raises(TrainingError, match=text):
        export_candidate(request)
    assert not request.candidates_folder.exists()


def test_a_changed_candidate_is_not_loaded(make_request, tmp_path):
    candidate = export_candidate(make_request(tmp_path / "one"))
    (candidate.folder / "parity.json").write_text("{}")
    with pytest.raises(TrainingError, match="was changed"):
        load_candidate(candidate.folder)


def test_an_export_that_differs_from_torch_leaves_nothing(make_request, tmp_path):
    request = make_request(tmp_path / "one", parity_bound=-1.0)
    with pytest.raises(TrainingError, match="differs from torch"):
        export_candidate(request)
    assert not request.candidates_folder.exists()


def test_weights_of_another_model_are_refused(make_request, tmp_path):
    request = make_request(tmp_path / "one")
    save_file({"layers.weight": torch.ones(1)}, request.weights_file)
    with pytest.raises(TrainingError, match="does not fit"):
        export_candidate(request)


def test_a_model_with_another_width_than_the_classes_is_refused(make_request, tmp_path, contract):
    wide = replace(contract, classes=("a", "b", "c"), outputs=(Output("logits", "float32", (3,)),))
    request = make_request(tmp_path / "one", contract=wide)
    with pytest.raises(TrainingError, match="does not fit"):
        export_candidate(request)


def test_a_contract_comes_back_from_its_json(contract):
    assert Contract.from_json(json.loads(json.dumps(contract.to_json()))) == contract
    with pytest.raises(TrainingError, match="version 2"):
        Contract.from_json({**contract.to_json(), "version": 2})
    with pytest.raises(TrainingError, match="not complete"):
        Contract.from_json({"version": 1})


@pytest.mark.parametrize(("difference", "rounded"), [(0.0, 0.0), (3e-8, 1e-7), (1e-7, 1e-7), (1.2e-6, 1e-5)])
def test_a_measured_difference_is_rounded_up(difference, rounded):
    assert round_up(difference) == rounded


def test_an_ensemble_is_one_model_that_answers_with_the_mean_probability(make_request, tmp_path, source, contract):
    request = make_request(tmp_path / "one")
    full = {**request.params, "columns": contract.column_sizes(), "classes": 2}
    members = [load_trainer(request.trainer_file).model(full).eval() for _ in range(3)]
    joined = {f"members.{n}.{name}": it for n, one in enumerate(members) for name, it in one.state_dict().items()}
    save_file(joined, request.weights_file)
    candidate = export_candidate(replace(request, members=3))
    columns = {"age": source.age[:9], "plan": source.plan[:9]}
    with torch.no_grad():
        expected = torch.stack([member(columns).softmax(1) for member in members]).mean(0)
        again = load_candidate(candidate.folder).load_module()(columns)
    session = onnxruntime.InferenceSession(candidate.onnx_file.read_bytes(), providers=["CPUExecutionProvider"])
    _, probabilities = session.run(None, {name: column.numpy() for name, column in columns.items()})
    assert torch.allclose(torch.tensor(probabilities), expected, atol=1e-5)
    assert torch.allclose(again.softmax(1), expected, atol=1e-5)
    model = loaded(candidate.folder, tmp_path / "fetched", members=3)
    logits = torch.tensor(model({name: column.numpy() for name, column in columns.items()}))
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


def loaded(folder, target, *, members):
    """What the five lines beside a fetched model define."""
    shutil.copytree(folder, target)
    text = render_loader(members=members)
    assert len(text.splitlines()) == 5
    assert "mlops" not in text
    (target / "load.py").write_text(text)
    return runpy.run_path(str(target / "load.py"))["model"]


def test_five_lines_load_the_weights_without_mlops(make_request, tmp_path, source):
    candidate = export_candidate(make_request(tmp_path / "one"))
    model = loaded(candidate.folder, tmp_path / "fetched", members=0)
    columns = {"age": source.age[:9], "plan": source.plan[:9]}
    assert torch.equal(model(columns), candidate.load_module()(columns))
