"""Whether a torch module may serve by itself, where it cannot be exported: finite, of the right width, row by row.

The server lets requests share a run, so the answer to a row must not depend on the rows beside it.
Leaves to others: export (mlops/training/export), the server's own copy of the computing (mlops/serving/server).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops.errors import TrainingError
from mlops.training.artefact import OUTPUTS, TorchArtefact

if TYPE_CHECKING:
    import torch

    from mlops.training.contract import Contract

_ALONE = 32
"""Rows that are asked for one by one."""
_FEW = 7
"""Rows of the other small batches."""
_MOST = 2_048


def measure_company(
    module: torch.nn.Module, *, contract: Contract, columns: Mapping[str, torch.Tensor]
) -> tuple[int, float]:
    """Rows compared, and the largest difference between answers in one batch and in small ones or alone.

    Raises:
        TrainingError: It does not run, or gives NaN, infinity or another shape.
    """
    artefact = TorchArtefact(module.eval().cpu())
    some = {name: column[:_MOST].numpy() for name, column in columns.items()}
    rows = len(next(iter(some.values())))
    together = _answer(artefact, some, contract=contract)
    steps = [(at, at + 1) for at in range(min(_ALONE, rows))]
    steps += [(at, min(at + _FEW, rows)) for at in range(min(_ALONE, rows), rows, _FEW)]
    largest = 0.0
    for start, end in steps:
        part = _answer(artefact, {name: column[start:end] for name, column in some.items()}, contract=contract)
        pairs = zip(together, part, strict=True)
        largest = max(largest, *(float(np.abs(whole[start:end] - alone).max()) for whole, alone in pairs))
    return rows, largest


def _answer(artefact: TorchArtefact, columns: Mapping[str, Any], *, contract: Contract) -> list[Any]:
    rows = len(next(iter(columns.values())))
    hint = "forward(columns) returns finite logits [B, params['classes']]"
    try:
        found = artefact.run(OUTPUTS, columns)
    except Exception as error:  # user code
        raise TrainingError(
            f"the model of {contract.product} does not run on {rows} rows: {error}", hint=hint
        ) from error
    expected = (rows, len(contract.classes))
    if found[0].shape != expected:
        raise TrainingError(
            f"the model of {contract.product} answers {found[0].shape} for {rows} rows, not {expected}", hint=hint
        )
    if not all(np.isfinite(values).all() for values in found):
        raise TrainingError(f"the model of {contract.product} gives NaN or infinity for {rows} rows", hint=hint)
    return found
