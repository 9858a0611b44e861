"""Tiny candidates without any training, for tests and benchmarks: one made by onnx alone, one that does not export.

Leaves to others: real candidates (mlops/training/export.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlops.provenance.digest import digest_folder
from mlops.training.contract import Contract, DatasetReference, InputColumn, Output

TINY_COLUMNS: tuple[InputColumn, ...] = (
    InputColumn("age", "float32", (), "number", minimum=0, maximum=120, integer=True),
    InputColumn("hours", "float32", (), "number", minimum=0, maximum=100),
    InputColumn("gain", "float32", (), "number"),
    InputColumn("workclass", "int64", (), "category", categories=("?", "Private", "State-gov")),
    InputColumn("sex", "int64", (), "category", categories=("Female", "Male")),
    InputColumn("history", "float32", (2, 3), "tensor", minimum=-1, maximum=1),
)
"""One column of every kind that a contract knows."""


_UNEXPORTABLE = """import torch

LIMIT = 4.0

class Halving(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.sizes = params["columns"]  # name to number of categories; 0 is a number
        self.last = torch.nn.Linear(params["width"], params["classes"])

    def forward(self, columns):
        parts = []
        for name, size in self.sizes.items():
            values = columns[name]
            parts.append(torch.nn.functional.one_hot(values, size) if size else values.flatten(1) if values.dim() > 1
                         else values[:, None])
        row = torch.cat([part.float() for part in parts], 1)
        while bool((row.abs() > LIMIT).any()):  # how often hangs on the data: no graph can be exported
            row = torch.where(row.abs() > LIMIT, row / 2, row)
        return self.last(row)


def model(params):
    return Halving(params)


def train(worker, params):
    raise NotImplementedError("this model is made for tests of serving")
"""


def tiny_contract(*, product: str = "income", columns: Sequence[InputColumn] = TINY_COLUMNS) -> Contract:
    """A contract of two classes over `columns`."""
    return Contract(
        product=product,
        inputs=tuple(columns),
        outputs=(Output("logits", "float32", (2,)), Output("probabilities", "float32", (2,))),
        classes=("<=50K", ">50K"),
        dataset=DatasetReference(name=product, digest="sha256:" + "d" * 64),
    )


def write_tiny_candidate(folder: Path, *, contract: Contract | None = None, seed: int = 0, width: int = 16) -> str:
    """Write `model.onnx` and `contract.json`; returns the folder's digest.

    Args:
        folder: Made when needed.
        contract: Default `tiny_contract()`.
        seed: Of the random weights.
        width: Hidden units.
    """
    used = contract or tiny_contract()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(_make_model(used, seed=seed, width=width))
    (folder / "contract.json").write_text(json.dumps(used.to_json()), encoding="utf-8")
    return digest_folder(folder)


def write_torch_candidate(folder: Path, *, contract: Contract | None = None, seed: int = 0) -> str:
    """Write a complete candidate whose model torch cannot export; returns the folder's digest.

    Args:
        folder: Made when needed.
        contract: Default `tiny_contract()`.
        seed: Of the random weights.
    """
    import numpy as np  # heavy
    from safetensors.numpy import save_file

    used = tiny_contract() if contract is None else contract
    folder.mkdir(parents=True, exist_ok=True)
    width = sum(len(column.categories) if column.categories else int(np.prod(column.shape)) for column in used.inputs)
    source = np.random.default_rng(seed)
    weights = {
        "last.weight": source.normal(size=(len(used.classes), width)).astype(np.float32),
        "last.bias": source.normal(size=len(used.classes)).astype(np.float32),
    }
    save_file(weights, folder / "weights.safetensors")
    (folder / "trainer.py").write_text(_UNEXPORTABLE, encoding="utf-8")
    origin = {"params": {"width": width}, "sweep": "tiny", "trial": 0, "seed": seed, "export": "torch"}
    parity = {"rows": 0, "max_abs_difference": 0.0, "bound": 1e-5}
    for name, content in {"params.json": origin, "contract.json": used.to_json(), "parity.json": parity}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return digest_folder(folder)


def _make_model(contract: Contract, *, seed: int, width: int) -> bytes:
    import numpy as np  # heavy, as is onnx
    from onnx import TensorProto, helper, numpy_helper

    source = np.random.default_rng(seed)
    nodes: list[Any] = []
    inputs: list[Any] = []
    weights = [numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "column_shape")]
    parts: list[str] = []
    features = 0

    def constant(name: str, *shape: int, scale: float = 1.0) -> str:
        weights.append(numpy_helper.from_array((source.normal(size=shape) * scale).astype(np.float32), name))
        return name

    for column in contract.inputs:
        kind = TensorProto.FLOAT if column.dtype == "float32" else TensorProto.INT64
        inputs.append(helper.make_tensor_value_info(column.name, kind, ["N", *column.shape]))
        part = f"{column.name}_part"
        if column.categories is not None:
            table = constant(f"{column.name}_table", len(column.categories), 4)
            nodes.append(helper.make_node("Gather", [table, column.name], [part]))
            features += 4
        elif column.shape:
            nodes.append(helper.make_node("Flatten", [column.name], [part], axis=1))
            features += int(np.prod(column.shape))
        else:
            nodes.append(helper.make_node("Reshape", [column.name, "column_shape"], [part]))
            features += 1
        parts.append(part)
    nodes += [
        helper.make_node("Concat", parts, ["row"], axis=1),
        helper.make_node("MatMul", ["row", constant("first", features, width, scale=0.02)], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", constant("second", width, len(contract.classes))], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["N", *output.shape])
        for output in contract.outputs
    ]
    graph = helper.make_graph(nodes, contract.product, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))
