"""What a candidate serves with, opened to be asked: `model.onnx`, or for a model that does not export its torch module.

Leaves to others: the candidate's other files (candidate.py), serving it (mlops/serving/server).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlops.errors import TrainingError

if TYPE_CHECKING:
    import torch

OUTPUTS = ("logits", "probabilities")


class Artefact(Protocol):
    """A model as a function of columns; the same on every machine and for every batch but for rounding."""

    @property
    def inputs(self) -> frozenset[str]:
        """Columns that it reads; an ONNX export leaves out those that the model ignores."""
        ...

    @property
    def outputs(self) -> frozenset[str]:
        """Names that may be asked for."""
        ...

    def run(self, names: Sequence[str], columns: Mapping[str, Any]) -> list[Any]:
        """The named outputs for a batch, as arrays; columns that it does not read are ignored."""
        ...


def open_artefact(folder: Path) -> Artefact:
    """The artefact of a candidate folder, computed on one thread, so that answers do not depend on the number of cores.

    Raises:
        TrainingError: There is none, or it cannot be loaded.
    """
    if (folder / "model.onnx").is_file():
        return _OnnxArtefact(folder / "model.onnx")
    from mlops.training.candidate import load_candidate  # imports this module's neighbours, and they torch

    return TorchArtefact(load_candidate(folder).load_module())


class _OnnxArtefact:
    """onnxruntime."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # works only before the import
        import onnxruntime  # loads a large library; the command line needs it only here

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class
            raise TrainingError(f"onnxruntime cannot load {path}: {error}", hint="export it again") from error

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self._session.get_inputs())

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self._session.get_outputs())

    def run(self, names: Sequence[str], columns: Mapping[str, Any]) -> list[Any]:
        used = self.inputs
        return list(self._session.run(list(names), {name: value for name, value in columns.items() if name in used}))


@dataclass(frozen=True)
class TorchArtefact:
    """torch."""

    module: torch.nn.Module
    inputs: frozenset[str] = frozenset()
    """A module does not say what it reads."""
    outputs: frozenset[str] = frozenset(OUTPUTS)

    def run(self, names: Sequence[str], columns: Mapping[str, Any]) -> list[Any]:
        """See `Artefact.run`."""
        import torch  # costs seconds to load

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                logits = self.module({name: torch.as_tensor(value) for name, value in columns.items()}).float()
                given = {"logits": logits, "probabilities": torch.softmax(logits, dim=-1)}
                return [given[name].numpy() for name in names]
        finally:
            torch.set_num_threads(threads)
