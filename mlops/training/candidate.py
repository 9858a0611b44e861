"""A candidate: the immutable folder that a sweep's winner is exported to, and that gate, registry and image read.

`model.onnx` serves; `weights.safetensors` with `trainer.py` rebuilds the torch module for attacks and analysis. A model
that does not export (`export: torch` in its sweep) has no `model.onnx`: weights and trainer serve.
Leaves to others: making it (mlops/training/export) and judging it (mlops/evaluation).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops.errors import TrainingError
from mlops.provenance.digest import digest_folder
from mlops.training.contract import Contract, load_contract

if TYPE_CHECKING:
    import torch

ONNX = "model.onnx"
FILES = (ONNX, "weights.safetensors", "trainer.py", "params.json", "contract.json", "parity.json")


@dataclass(frozen=True)
class Candidate:
    """One exported model; equal by digest."""

    folder: Path
    digest: str
    """`digest_folder` of the folder."""
    product: str
    params: dict[str, Any]
    """Hyperparameters of the winning trial, the reserved ones (`columns`, `classes`) left out."""
    contract: Contract
    members: int = 0
    """Isolated members that the model joins; 0 is a single model."""
    export: str = "onnx"
    """`torch` for a model that does not export."""

    @property
    def onnx_file(self) -> Path:
        """The artefact that will serve, of a model that exports."""
        return self.folder / ONNX

    @property
    def artefact_file(self) -> Path:
        """What will serve: the ONNX file, or the weights."""
        return self.weights_file if self.export == "torch" else self.onnx_file

    @property
    def weights_file(self) -> Path:
        """Safetensors of the module's state."""
        return self.folder / "weights.safetensors"

    def full_params(self) -> dict[str, Any]:
        """What `model(params)` of the trainer gets: the trial's parameters and the reserved ones."""
        return {**self.params, "columns": self.contract.column_sizes(), "classes": len(self.contract.classes)}

    def load_module(self) -> torch.nn.Module:
        """The torch module with its weights, in evaluation mode, on the CPU.

        Runs the candidate's own `trainer.py`: user code, in this process.

        Raises:
            TrainingError: The trainer fails, or the weights do not fit it.
        """
        from mlops.training.joined_module import load_module  # loads torch, which costs seconds

        return load_module(
            self.folder / "trainer.py", self.weights_file, params=self.full_params(), members=self.members
        )


def load_candidate(folder: Path) -> Candidate:
    """Read a candidate folder and compute its digest.

    Raises:
        TrainingError: A file is missing, or the folder's name is a digest that its content does not have.
    """
    origin = _read_origin(folder / "params.json")
    export = str(origin.get("export", "onnx"))
    needed = FILES if export == "onnx" else FILES[1:]
    missing = tuple(name for name in needed if not (folder / name).is_file())
    if missing:
        raise TrainingError(f"{folder} is not a candidate: files are missing", items=missing, hint="export it again")
    digest = digest_folder(folder)
    if len(folder.name) == 64 and digest != f"sha256:{folder.name}":
        raise TrainingError(
            f"candidate {folder.name[:12]} was changed: its content is {digest[7:19]}",
            hint="remove the folder and run the release again; the export is repeated from the weights",
        )
    contract = load_contract(folder / "contract.json")
    return Candidate(
        folder=folder,
        digest=digest,
        product=contract.product,
        params=origin["params"],
        contract=contract,
        members=int(origin.get("members", 0)),
        export=export,
    )


def _read_origin(path: Path) -> dict[str, Any]:
    """Of a damaged or missing file nothing: the folder's digest tells."""
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}
