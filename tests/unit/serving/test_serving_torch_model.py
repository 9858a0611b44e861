"""A model that does not export: served by torch as it was judged, and only where the image says so."""

import shutil

import numpy as np
import pytest
import torch

from mlops.errors import ServingError, TrainingError
from mlops.evaluation.judged import load_judged
from mlops.provenance.digest import canonical_json
from mlops.serving.candidate_files import read_model_files
from mlops.serving.golden import answer_golden, make_golden_requests, render_golden
from mlops.serving.image import ImageRequest, ImageSpec
from mlops.serving.server.onnx_model import load_models
from mlops.serving.server.settings import Settings
from mlops.serving.testing import tiny_contract, write_tiny_candidate, write_torch_candidate
from mlops.training.candidate import load_candidate
from mlops.training.onnx_export import export_onnx
from tests.unit.serving.conftest import Server

torch.set_num_threads(1)


def _request(folder, *, runtime="torch", product="income"):
    spec = ImageSpec(runtime=runtime)
    return ImageRequest(
        candidate_folder=folder, product=product, version="1", evidence={}, spec=spec, layout=folder, downloads=folder,
        cache=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def candidate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged") / "candidate"
    write_torch_candidate(folder)
    return folder


def test_the_model_of_these_tests_cannot_be_exported(candidate):
    with pytest.raises(TrainingError, match="cannot be exported: GuardOnDataDependent"):
        export_onnx(load_candidate(candidate).load_module(), contract=tiny_contract())


def test_the_server_answers_as_the_judged_module_does(candidate, tmp_path):
    contract = tiny_contract()
    golden = make_golden_requests(contract)
    folder = tmp_path / "income/1"
    folder.mkdir(parents=True)
    content, files = read_model_files(_request(candidate))
    assert sorted(files) == ["model.json", "trainer.py", "weights.safetensors"]
    golden_file = canonical_json(render_golden(golden, contract=contract))
    evidence = canonical_json({"candidate": load_candidate(candidate).digest})
    more = {"contract.json": content, "golden.json": golden_file, "evidence.json": evidence}
    for name, blob in {**files, **more}.items():
        (folder / name).write_bytes(blob)
    settings = Settings(models=str(tmp_path), request_log="none")
    (model,) = load_models(settings)
    model.warm_up()
    assert model.providers == ["torch"]
    assert Server([model], settings).ask("GET", "/v2/models/income").json()["platform"] == "pytorch_safetensors"
    assert torch.is_grad_enabled(), "whoever opens one goes on with what needs gradients"
    server = Server([model], settings)
    judged = load_judged(load_candidate(candidate))
    for request, expected in zip(golden, answer_golden(candidate, golden, contract=contract), strict=True):
        outputs = {
            item["name"]: item["data"]
            for item in server.infer(request.to_inference_request(contract)).json()["outputs"]
        }
        assert np.allclose(outputs["logits"], np.ravel(expected["logits"]), atol=1e-6)
        coded = {name: np.asarray(values) for name, values in request.coded_columns(contract).items()}
        assert np.allclose(judged.answer(coded).probabilities, expected["probabilities"], atol=1e-6)
    assert (judged.name_of_artefact, judged.bytes_of_artefact) == (
        "weights.safetensors", (candidate / "weights.safetensors").stat().st_size,
    )  # fmt: skip
    model.close()


REFUSED = {
    "an image that does not ask for torch": ({"runtime": "onnx"}, "write `runtime: torch`"),
    "another product": ({"product": "digits"}, "the candidate is of product 'income'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_torch_model_is_refused_in(candidate, name):
    changes, text = REFUSED[name]
    with pytest.raises(ServingError) as refused:
        read_model_files(_request(candidate, **changes))
    assert text in f"{refused.value.message} {refused.value.hint}"


def test_an_exported_model_gets_no_torch(tmp_path):
    write_tiny_candidate(tmp_path / "exported")
    with pytest.raises(ServingError, match="needs no torch"):
        read_model_files(_request(tmp_path / "exported"))


def test_a_candidate_says_whether_it_should_have_been_exported(candidate, tmp_path):
    shutil.copytree(candidate, tmp_path / "copy")
    assert load_candidate(tmp_path / "copy").artefact_file.name == "weights.safetensors"
    (tmp_path / "copy/params.json").write_text('{"params": {}}')
    with pytest.raises(TrainingError, match="files are missing"):
        load_candidate(tmp_path / "copy")
