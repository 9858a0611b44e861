"""Golden requests: synthetic rows made from the contract alone, and what the judged model answers to them.

The requests travel in the image (the server warms up with them). The answers do not: they are computed from the judged
artefact when they are compared, so that the image's digest does not hang on the last bit of a machine's arithmetic.
Leaves to others: asking a running image (probe.py).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.errors import ServingError
from mlops.training.artefact import open_artefact
from mlops.training.contract import Contract, InputColumn

DEFAULT_SEED = 20_240_101
_BATCHES = (1, 1, 2, 7, 32)
"""Rows per request: single rows, an odd number, a usual batch."""
_UNBOUNDED = 3.0
"""Numbers without a stated range are drawn from ±3."""


@dataclass(frozen=True)
class GoldenRequest:
    """One synthetic request."""

    name: str
    rows: int
    columns: Mapping[str, Sequence[Any]]
    """Per input its values row after row: numbers, codes or (for `is_raw`) category names; tensors are nested lists."""
    is_raw: bool
    """Categories are given by name, as a consumer would."""

    def to_inference_request(self, contract: Contract) -> dict[str, Any]:
        """The request in the Open Inference Protocol v2."""
        inputs = []
        for column in contract.inputs:
            datatype = "FP32" if column.dtype == "float32" else "INT64"
            if self.is_raw and column.categories is not None:
                datatype = "BYTES"
            shape = [self.rows, *column.shape]
            inputs.append(
                {"name": column.name, "datatype": datatype, "shape": shape, "data": self.columns[column.name]}
            )
        return {"id": self.name, "inputs": inputs}

    def coded_columns(self, contract: Contract) -> dict[str, Sequence[Any]]:
        """What the model itself is fed: names of categories turned into codes."""
        coded = dict(self.columns)
        for column in contract.inputs:
            if self.is_raw and column.categories is not None:
                coded[column.name] = [column.categories.index(name) for name in self.columns[column.name]]
        return coded


def make_golden_requests(contract: Contract, *, seed: int = DEFAULT_SEED) -> tuple[GoldenRequest, ...]:
    """The same requests for the same contract and seed, on every machine."""
    source = random.Random(seed)  # noqa: S311 - reproducible test rows, no secret
    return tuple(
        GoldenRequest(
            name=f"golden-{number}",
            rows=rows,
            columns={
                column.name: _draw_column(source, column, rows, is_raw=number % 2 == 0) for column in contract.inputs
            },
            is_raw=number % 2 == 0,
        )
        for number, rows in enumerate(_BATCHES)
    )


def render_golden(requests: Sequence[GoldenRequest], *, contract: Contract) -> dict[str, Any]:
    """The content of golden.json in the image."""
    return {"version": 1, "requests": [request.to_inference_request(contract) for request in requests]}


def answer_golden(
    candidate_folder: Path, requests: Sequence[GoldenRequest], *, contract: Contract
) -> list[dict[str, list[list[float]]]]:
    """Per request, each output of the judged model as rows of numbers.

    Raises:
        ServingError: The model does not fulfil the contract.
    """
    import numpy as np  # heavy

    try:
        artefact = open_artefact(candidate_folder)
        answers = []
        for request in requests:
            coded = request.coded_columns(contract)
            feed = {
                column.name: np.asarray(coded[column.name], dtype=column.dtype).reshape(request.rows, *column.shape)
                for column in contract.inputs
            }
            names = [output.name for output in contract.outputs]
            values = artefact.run(names, feed)
            answers.append({name: np.asarray(value).tolist() for name, value in zip(names, values, strict=True)})
    except Exception as error:  # onnxruntime raises many kinds of its own, and a trainer any
        raise ServingError(
            f"the model in {candidate_folder} does not fulfil its contract: {error}", hint="export the candidate again"
        ) from error
    for request, answer in zip(requests, answers, strict=True):
        _require_shapes(request, answer, contract)
    return answers


def _require_shapes(request: GoldenRequest, answer: Mapping[str, Any], contract: Contract) -> None:
    import numpy as np  # heavy

    for output in contract.outputs:
        expected = (request.rows, *output.shape)
        value = np.asarray(answer[output.name])
        if value.shape != expected:
            raise ServingError(
                f"output {output.name} has shape {list(value.shape)}, the contract says {list(expected)}"
            )
        if not np.isfinite(value).all():
            raise ServingError(f"output {output.name} is not finite for the synthetic request {request.name}")


def _draw_column(source: random.Random, column: InputColumn, rows: int, *, is_raw: bool) -> list[Any]:
    return [_draw_value(source, column, is_raw=is_raw) for _ in range(rows)]


def _draw_value(source: random.Random, column: InputColumn, *, is_raw: bool) -> Any:
    if column.categories is not None:
        code = source.randrange(len(column.categories))
        return column.categories[code] if is_raw else code
    if column.kind == "tensor":
        return _draw_tensor(source, column, column.shape)
    return _draw_number(source, column)


def _draw_tensor(source: random.Random, column: InputColumn, shape: Sequence[int]) -> Any:
    if not shape:
        return _draw_number(source, column)
    return [_draw_tensor(source, column, shape[1:]) for _ in range(shape[0])]


def _draw_number(source: random.Random, column: InputColumn) -> float | int:
    low = -_UNBOUNDED if column.minimum is None else column.minimum
    high = low + 2 * _UNBOUNDED if column.maximum is None else column.maximum
    if column.integer or column.dtype == "int64":
        return source.randint(round(low), max(round(low), round(high)))
    steps = 1_024  # binary fractions of the range survive JSON and float32 without rounding surprises
    return low + (high - low) * source.randrange(steps + 1) / steps
