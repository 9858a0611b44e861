"""A tiny real candidate: one number and one category in, two classes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

CONTRACT: dict[str, Any] = {
    "version": 1,
    "product": "income",
    "inputs": [
        {"name": "age", "dtype": "float32", "shape": [], "kind": "number", "minimum": 0, "maximum": 99},
        {"name": "job", "dtype": "int64", "shape": [], "kind": "category", "categories": ["a", "b"]},
    ],
    "outputs": [
        {"name": "logits", "dtype": "float32", "shape": [2]},
        {"name": "probabilities", "dtype": "float32", "shape": [2]},
    ],
    "classes": ["no", "yes"],
    "dataset": {"name": "income", "digest": "sha256:" + "d" * 64},
}


def write_candidate(folder: Path, *, bias: float) -> Path:
    """`logits = [age + job, bias]`, as a candidate folder."""
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["job"], ["job_number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["age", "job_number"], ["sum"]),
            helper.make_node("Unsqueeze", ["sum", "axis"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "bias"], ["constant"]),
            helper.make_node("Concat", ["column", "constant"], ["logits"], axis=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("age", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("job", TensorProto.INT64, ["N"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
            helper.make_tensor("bias", TensorProto.FLOAT, [1], [bias]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    save_file({"bias": numpy.array([bias], dtype=numpy.float32)}, folder / "weights.safetensors")
    (folder / "contract.json").write_text(json.dumps(CONTRACT), encoding="utf-8")
    (folder / "trainer.py").write_text("# the trainer\n", encoding="utf-8")
    return folder


@pytest.fixture
def contract() -> dict[str, Any]:
    return CONTRACT


@pytest.fixture
def make_candidate(tmp_path: Path) -> Any:
    """`make_candidate(bias)` gives a candidate folder."""
    return lambda bias: write_candidate(tmp_path / f"candidate-{bias}", bias=bias)
