"""Weights on a grid of 255 steps, kept as int8 in the exported model: a quarter of the bytes, the same arithmetic.

The weights themselves are rounded, before parity is measured and the gate judges, so that torch, ONNX and the served
image are one model. Activations stay float32: rounding those by the range of a batch would let the rows of one request
change the answers of another.
Leaves to others: export as a whole (export.py), whether the rounded model is good enough (mlops/evaluation).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load_file, save_file

_STEPS = 127


def round_weights(source: Path, target: Path) -> None:
    """Safetensors of a module to the same with each matrix (two or more dimensions) on its own grid."""
    tensors = load_file(source)
    save_file({name: _round(tensor) for name, tensor in tensors.items()}, target)


def pack_weights(model: bytes) -> bytes:
    """ONNX bytes whose matrices that lie on a grid are int8 with a scale; the others stay as they are."""
    proto = onnx.ModelProto.FromString(model)
    kept, nodes = [], []
    for tensor in proto.graph.initializer:
        packed = _pack(numpy_helper.to_array(tensor)) if tensor.data_type == onnx.TensorProto.FLOAT else None
        if packed is None:
            kept.append(tensor)
            continue
        steps, scale = packed
        names = [f"{tensor.name}_int8", f"{tensor.name}_scale"]
        kept += [numpy_helper.from_array(steps, names[0]), numpy_helper.from_array(scale, names[1])]
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], name=f"{tensor.name}_float"))
    nodes += list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend(kept)
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def _round(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.float32 or tensor.dim() < 2 or not tensor.numel():
        return tensor
    scale = tensor.abs().max() / _STEPS
    return tensor if scale == 0 else torch.round(tensor / scale) * scale


def _pack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and scale of a matrix that was rounded; None for any other constant."""
    if values.ndim < 2 or not values.size or not np.abs(values).max():
        return None
    scale = np.float32(np.abs(values).max() / _STEPS)
    steps = np.rint(values / scale)
    if not np.allclose(steps * scale, values, rtol=1e-5, atol=float(scale) * 1e-3):
        return None
    return steps.astype(np.int8), np.array(scale, dtype=np.float32)
