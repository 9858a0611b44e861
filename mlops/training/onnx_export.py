"""A torch module to canonical ONNX bytes, and the comparison of both (the door to torch.onnx, onnx and onnxruntime).

The dynamo exporter writes absolute paths and source lines into the graph: they are removed, so that the same weights
give the same bytes from any folder. Leaves to others: the candidate folder (mlops/training/export).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch

from mlops.errors import TrainingError
from mlops.training.contract import Contract

OPSET = 18
_BATCH_OF_EXAMPLE = 3


class _Served(torch.nn.Module):
    """Columns by position to logits and probabilities; ONNX inputs have no dict."""

    def __init__(self, inner: torch.nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.names = names

    def forward(self, *columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.inner(dict(zip(self.names, columns, strict=True))).to(torch.float32)
        return logits, torch.softmax(logits, dim=-1)


def export_onnx(module: torch.nn.Module, *, contract: Contract) -> bytes:
    """Canonical ONNX bytes with one input per column and outputs `logits` and `probabilities`, batch size open.

    Raises:
        TrainingError: The module cannot be traced, or its output has another width than the contract's classes.
    """
    module = module.eval().cpu()
    example = tuple(example_column(column.dtype, shape=column.shape) for column in contract.inputs)
    names = tuple(column.name for column in contract.inputs)
    served = _Served(module, names).eval()
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            logits, _ = served(*example)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                served,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=["logits", "probabilities"],
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                verbose=False,
                optimize=True,
            )
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own text only says that it failed
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else ""
        raise TrainingError(
            f"the model of {contract.product} cannot be exported: {type(cause).__name__}: {first}",
            hint="forward(columns) must be traceable by torch.export: tensor operations only, batch size open; a model "
            "that cannot be so is served by torch itself (docs/serving.md, `export: torch`)",
        ) from error
    _require_width(logits, contract)
    assert program is not None
    return canonical_bytes(program.model_proto)


def example_column(dtype: str, *, shape: tuple[int, ...]) -> torch.Tensor:
    """A few zero rows of a column: code 0 is valid for each category."""
    return torch.zeros((_BATCH_OF_EXAMPLE, *shape), dtype=torch.float32 if dtype == "float32" else torch.int64)


def canonical_bytes(model: onnx.ModelProto) -> bytes:
    """The same bytes for the same graph: no paths, source lines, producer version or shape hints."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    stripped.producer_name, stripped.producer_version, stripped.domain = "mlops", "", ""
    stripped.doc_string = ""
    del stripped.metadata_props[:]
    _strip_graph(stripped.graph)
    for function in stripped.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        for node in function.node:
            _strip_node(node)
    onnx.checker.check_model(stripped)
    return stripped.SerializeToString(deterministic=True)


def measure_parity(
    module: torch.nn.Module, *, onnx_bytes: bytes, columns: Mapping[str, torch.Tensor], batch_size: int = 4096
) -> tuple[int, float]:
    """Rows compared, and the largest absolute difference of logits or probabilities between torch and onnxruntime."""
    import onnxruntime  # loaded here: telemetry must be switched off in the environment before its import

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    rows = len(next(iter(columns.values())))
    largest = 0.0
    module = module.eval().cpu()
    for start in range(0, rows, batch_size):
        part = {name: column[start : start + batch_size] for name, column in columns.items()}
        with torch.no_grad():
            logits = module(part).to(torch.float32)
            expected = (logits.numpy(), torch.softmax(logits, dim=-1).numpy())
        answered: Any = session.run(["logits", "probabilities"], {name: value.numpy() for name, value in part.items()})
        for ours, theirs in zip(expected, answered, strict=True):
            difference = np.abs(ours - theirs).max()
            largest = max(largest, float(difference) if np.isfinite(difference) else float("inf"))
    return rows, largest


def _require_width(logits: torch.Tensor, contract: Contract) -> None:
    expected = (_BATCH_OF_EXAMPLE, len(contract.classes))
    if tuple(logits.shape) != expected:
        raise TrainingError(
            f"the model of {contract.product} answers {tuple(logits.shape)} for {_BATCH_OF_EXAMPLE} rows, "
            f"not {expected}",
            hint="forward(columns) returns logits [B, params['classes']]",
        )


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    graph.name = "model"
    del graph.metadata_props[:]
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    for node in graph.node:
        _strip_node(node)
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]
    for attribute in node.attribute:
        attribute.doc_string = ""
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            _strip_graph(graph)
