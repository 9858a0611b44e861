"""The model that is judged: the artefact that will serve, and beside it the torch module for white-box attacks.

Leaves to others: the candidate folder (mlops/training/candidate) and what the answers mean (checks/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.errors import TrainingError
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.training.artefact import OUTPUTS, open_artefact

if TYPE_CHECKING:
    import torch

    from mlops.training.candidate import Candidate
    from mlops.training.contract import Contract

Floats = NDArray[np.float32]
BATCH = 8192


@dataclass(frozen=True)
class Answers:
    """What a model says about N rows with C classes."""

    logits: Floats
    probabilities: Floats

    @property
    def classes(self) -> NDArray[np.int64]:
        """The answer of each row."""
        return self.logits.argmax(axis=1).astype(np.int64)


@dataclass(frozen=True)
class JudgedModel:
    """A model as the gate sees it: a function of columns, its contract, and the module behind it."""

    digest: str
    contract: Contract
    run: Callable[[Mapping[str, NDArray[Any]]], tuple[Floats, Floats]]
    """Columns of a batch to logits and probabilities, `[B, C]` each: the artefact that will serve."""
    load_module: Callable[[], torch.nn.Module]
    """The torch module with the same weights; its parity with `run` is a check of its own."""
    bytes_of_artefact: int
    """Size of what will serve."""
    name_of_artefact: str = "model.onnx"

    def answer(self, features: Mapping[str, NDArray[Any]]) -> Answers:
        """Answers for all rows.

        Raises:
            NotEvaluableError: The model does not run on the rows, or gives NaN, infinity or another shape.
        """
        columns = {column.name: features[column.name].astype(column.dtype) for column in self.contract.inputs}
        count = len(next(iter(columns.values())))
        logits, probabilities = [], []
        for start in range(0, count, BATCH):
            try:
                first, second = self.run({name: values[start : start + BATCH] for name, values in columns.items()})
            except Exception as error:
                raise NotEvaluableError("model-crashed", f"the model does not run on the rows: {error}") from error
            logits.append(np.asarray(first))
            probabilities.append(np.asarray(second))
        answers = Answers(np.concatenate(logits), np.concatenate(probabilities))
        self._verify(answers, count=count)
        return answers

    def _verify(self, answers: Answers, *, count: int) -> None:
        expected = (count, len(self.contract.classes))
        for name, values in (("logits", answers.logits), ("probabilities", answers.probabilities)):
            if values.shape != expected:
                raise NotEvaluableError(
                    "wrong-shape", f"{name} have shape {values.shape}, the contract says {expected}"
                )
            bad = int((~np.isfinite(values)).any(axis=1).sum())
            if bad:
                raise NotEvaluableError("not-finite", f"{name} are NaN or infinite for {bad} of {count} rows")
        sums = answers.probabilities.sum(axis=1)
        if (answers.probabilities < 0).any() or (np.abs(sums - 1) > 1e-3).any():
            raise NotEvaluableError("not-probabilities", "probabilities are negative or do not sum to one")


def load_judged(candidate: Candidate) -> JudgedModel:
    """Open what the candidate will serve with.

    Raises:
        NotEvaluableError: Not a model that can be loaded, or not what the contract says.
    """
    try:
        artefact = open_artefact(candidate.folder)
    except TrainingError as error:
        raise NotEvaluableError("model-unreadable", error.message) from error
    name = candidate.artefact_file.name
    strangers = artefact.inputs - {column.name for column in candidate.contract.inputs}
    if strangers or not set(OUTPUTS) <= artefact.outputs:
        raise NotEvaluableError(
            "contract-broken",
            f"{name} asks for {sorted(strangers) or 'no strangers'} and gives {sorted(artefact.outputs)}",
        )

    def run(columns: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        logits, probabilities = artefact.run(OUTPUTS, columns)
        return logits, probabilities

    return JudgedModel(
        digest=candidate.digest,
        contract=candidate.contract,
        run=run,
        load_module=candidate.load_module,
        bytes_of_artefact=candidate.artefact_file.stat().st_size,
        name_of_artefact=name,
    )


def columns_as_tensors(rows: Rows, *, contract: Contract) -> dict[str, torch.Tensor]:
    """Features of rows as the module takes them."""
    import torch  # costs seconds to load

    return {
        column.name: torch.from_numpy(np.ascontiguousarray(rows.features[column.name].astype(column.dtype)))
        for column in contract.inputs
    }
