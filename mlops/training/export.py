"""Export: the weights of a sweep's winner become a candidate folder, named by the digest of its content.

The exported ONNX must answer like the torch module on the validation rows, within a stated bound; else there is no
candidate. A model that does not export must answer each row as it answers it among others.
Leaves to others: how ONNX is made (mlops/training/onnx_export) and judging the candidate (mlops/evaluation).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlops.errors import TrainingError
from mlops.files import write_atomically
from mlops.provenance.digest import canonical_json, digest_folder, hex_of
from mlops.training.candidate import Candidate, load_candidate
from mlops.training.contract import Contract
from mlops.training.private_training import FILE as PRIVACY_FILE
from mlops.training.private_training import load_privacy
from mlops.training.trainer import RESERVED

if TYPE_CHECKING:
    import torch

PARITY_BOUND = 1e-5
"""Largest allowed difference between torch and onnxruntime; measured differences are about 1e-7."""


@dataclass(frozen=True)
class ExportRequest:
    """What is exported, and where to."""

    trainer_file: Path
    weights_file: Path
    """Safetensors of the winner's module."""
    params: Mapping[str, Any]
    """The trial's parameters; the reserved ones come from the contract."""
    contract: Contract
    validation: Mapping[str, torch.Tensor]
    """Feature columns of the rows that torch and onnxruntime are compared on."""
    candidates_folder: Path
    sweep_id: str
    trial: int
    seed: int
    members: int = 0
    """Of an ensemble, whose weights file holds all of them; 0 is a single model."""
    parity_bound: float = PARITY_BOUND
    weights: Literal["float32", "int8"] = "float32"
    """`int8`: matrices are rounded first, and kept so in the exported model."""
    export: Literal["onnx", "torch"] = "onnx"
    """`torch`: weights and trainer serve, and there is no `model.onnx`."""


def export_candidate(request: ExportRequest) -> Candidate:
    """Write the candidate folder `<candidates_folder>/<hex digest>/`, all or nothing.

    Raises:
        TrainingError: The weights do not fit, the export fails, or its answers differ by more than the bound.
    """
    if request.weights == "float32":
        return _export(request)
    from mlops.training.int8_weights import round_weights  # loads torch, which costs seconds

    with tempfile.TemporaryDirectory(prefix="rounded-") as scratch:
        rounded = Path(scratch) / request.weights_file.name
        round_weights(request.weights_file, rounded)
        spent = request.weights_file.with_name(PRIVACY_FILE)
        if spent.is_file():
            shutil.copyfile(spent, rounded.with_name(PRIVACY_FILE))
        return _export(replace(request, weights_file=rounded))


def _export(request: ExportRequest) -> Candidate:
    from mlops.training.joined_module import load_module  # loads torch, which costs seconds

    contract = request.contract
    params = {name: value for name, value in request.params.items() if name not in RESERVED}
    full = {**params, "columns": contract.column_sizes(), "classes": len(contract.classes)}
    module = load_module(request.trainer_file, request.weights_file, params=full, members=request.members)
    if request.export == "torch":
        onnx_bytes, (rows, difference) = None, _measure_module(module, request)
    else:
        onnx_bytes, (rows, difference) = _export_onnx(module, request)
    # The measured difference depends on the machine's vector width; rounding it up keeps the candidate's digest equal.
    parity = {"rows": rows, "max_abs_difference": round_up(difference), "bound": request.parity_bound}
    return _write_candidate(request, params=params, onnx_bytes=onnx_bytes, parity=parity)


def _export_onnx(module: torch.nn.Module, request: ExportRequest) -> tuple[bytes, tuple[int, float]]:
    """The model, and on how many rows it differs from torch by how much."""
    from mlops.training.onnx_export import export_onnx, measure_parity  # loads torch

    onnx_bytes = export_onnx(module, contract=request.contract)
    if request.weights == "int8":
        from mlops.training.int8_weights import pack_weights  # as above

        onnx_bytes = pack_weights(onnx_bytes)
    rows, difference = measure_parity(module, onnx_bytes=onnx_bytes, columns=request.validation)
    if not difference <= request.parity_bound:
        raise TrainingError(
            f"the exported {request.contract.product} differs from torch by {difference:.3g} on {rows} validation "
            f"rows, bound {request.parity_bound:g}",
            hint="look for operations that onnxruntime computes in another precision",
        )
    return onnx_bytes, (rows, difference)


def _measure_module(module: torch.nn.Module, request: ExportRequest) -> tuple[int, float]:
    """On how many rows the module, asked for them together, differs by how much from itself asked for a few."""
    from mlops.training.torch_serving import measure_company  # loads torch

    rows, difference = measure_company(module, contract=request.contract, columns=request.validation)
    if not difference <= request.parity_bound:
        raise TrainingError(
            f"the answers of {request.contract.product} change by {difference:.3g} with the other rows of a batch, "
            f"bound {request.parity_bound:g}",
            hint="forward(columns) must answer each row by itself: the server lets requests share a batch",
        )
    return rows, difference


def round_up(difference: float) -> float:
    """The next power of ten at or above `difference`; 0 stays 0."""
    if difference == 0:
        return 0.0
    exponent = -12
    while 10.0**exponent < difference:
        exponent += 1
    return float(f"1e{exponent}")


def _write_candidate(
    request: ExportRequest, *, params: dict[str, Any], onnx_bytes: bytes | None, parity: dict[str, Any]
) -> Candidate:
    request.candidates_folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".candidate.", dir=request.candidates_folder))
    try:
        if onnx_bytes is not None:
            write_atomically(scratch / "model.onnx", onnx_bytes)
        write_atomically(scratch / "weights.safetensors", request.weights_file.read_bytes())
        write_atomically(scratch / "trainer.py", request.trainer_file.read_bytes())
        origin: dict[str, Any] = {
            "params": params,
            "sweep": request.sweep_id,
            "trial": request.trial,
            "seed": request.seed,
        }
        privacy = load_privacy(request.weights_file.parent)
        if privacy is not None:
            origin["privacy"] = privacy
        if request.export != "onnx":
            origin["export"] = request.export
        if request.members:
            origin["members"] = request.members
        for name, content in {
            "params.json": origin,
            "contract.json": request.contract.to_json(),
            "parity.json": parity,
        }.items():
            write_atomically(scratch / name, canonical_json(content) + b"\n")
        target = request.candidates_folder / hex_of(digest_folder(scratch))
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(scratch)
        else:
            scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return load_candidate(target)


def load_parity(candidate: Candidate) -> dict[str, Any]:
    """The content of parity.json: rows, max_abs_difference, bound."""
    content: dict[str, Any] = json.loads((candidate.folder / "parity.json").read_text(encoding="utf-8"))
    return content
