"""What a person reports: the row that was answered wrongly, and what should have held, in their words.

The row comes as the request that was sent (Open Inference Protocol v2, `/invocations`, or one JSON object of inputs)
and is held in memory only. Leaves to others: making a case of it that is nobody's row (synthesis.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from mlops.errors import ProjectError
from mlops.evaluation.incident_spec import Relation
from mlops.evaluation.surface_rules import Change
from mlops.serving.server.contract import BadRequestError, Contract
from mlops.serving.server.inference import parse_inference, parse_json
from mlops.serving.server.scoring import parse_scoring

Features = dict[str, NDArray[Any]]
RELATIONS = "'equals CLASS', 'is-not CLASS', 'bound LOW..HIGH', 'invariant COLUMN', 'monotone COLUMN [STEP]'"
_MOST_ROWS = 1_000
_RANGE = re.compile(r"(\d*\.?\d*)\s*\.\.\s*(\d*\.?\d*)")


def parse_relation(text: str) -> Relation:
    """`equals >50K`, `bound 0.2..0.8`, `monotone hours_per_week 5` to a relation.

    Raises:
        ProjectError: Not a relation.
    """
    kind, _, rest = text.strip().replace("is not ", "is-not ", 1).partition(" ")
    rest = rest.strip()
    try:
        if kind in ("equals", "is-not") and rest:
            return Relation.model_validate({"kind": kind, "answer": rest})
        if kind == "bound" and (match := _RANGE.fullmatch(rest)):
            return Relation(kind="bound", minimum=float(match[1] or 0), maximum=float(match[2] or 1))
        if kind == "invariant" and rest:
            return Relation(kind="invariant", column=rest)
        if kind == "monotone" and rest:
            column, _, step = rest.partition(" ")
            return Relation(kind="monotone", column=column, step=float(step or 1))
    except (ValueError, ValidationError):
        pass
    raise ProjectError(f"{text!r} does not say what should hold", hint=f"write one of: {RELATIONS}")


def parse_change(text: str) -> Change:
    """`age:5` (up and down), `workclass:any`, `plan:basic,plus` to what may vary around a case.

    Raises:
        ProjectError: Not a change.
    """
    column, _, rest = text.partition(":")
    try:
        if not column or not rest:
            raise ValueError(text)
        if rest == "any":
            return Change(column=column, to="any")
        if re.fullmatch(r"\d+(\.\d+)?", rest):
            return Change(column=column, up=float(rest), down=float(rest))
        return Change(column=column, to=tuple(rest.split(",")))
    except ValueError as error:
        raise ProjectError(
            f"--vary {text!r} does not say what may vary", hint="write COLUMN:AMOUNT, COLUMN:any or COLUMN:NAME,NAME"
        ) from error


def read_row(body: bytes, contract: Contract, *, number: int | None) -> Features:
    """One row of a request as features, each of shape `[1]`.

    Args:
        body: What was sent to the model, or one JSON object of its inputs.
        contract: Of the model that answered.
        number: Which row of it, from 0; None when it has only one.

    Raises:
        ProjectError: Not a request this model could have answered, or it has several rows and `number` is None.
    """
    if any(column.shape for column in contract.inputs):
        raise ProjectError(
            f"{contract.product} takes tensors, which a case cannot hold",
            hint="write a check of your own into evaluation/checks/",
        )
    try:
        rows, feed = _parse(body, contract)
    except BadRequestError as error:
        raise ProjectError(
            f"standard input is no request that {contract.product} could have answered: {error}",
            hint="send the request as it was sent, or one JSON object of all inputs",
        ) from error
    if number is None and rows != 1:
        raise ProjectError(f"the request has {rows} rows", hint=f"say which with --number 0 … {rows - 1}")
    chosen = number or 0
    if not 0 <= chosen < rows:
        raise ProjectError(f"--number {chosen}: the request has rows 0 … {rows - 1}")
    return {
        column.name: np.asarray(feed[column.name]).reshape(rows)[chosen : chosen + 1].astype(column.dtype)
        for column in contract.inputs
    }


def _parse(body: bytes, contract: Contract) -> tuple[int, Mapping[str, Any]]:
    content = parse_json(body)
    if isinstance(content, dict) and isinstance(content.get("inputs"), list):
        tensors = content["inputs"]
        if all(isinstance(entry, dict) and "datatype" in entry for entry in tensors):
            request = parse_inference(body, json_length=None, contract=contract, max_rows=_MOST_ROWS)
            return request.rows, request.feed
    if isinstance(content, dict) and set(content) & set(contract.by_name) and "inputs" not in content:
        columns = {name: [value] for name, value in content.items()}
        contract.require_complete(columns)
        return 1, {name: contract.by_name[name].check_values(values) for name, values in columns.items()}
    return parse_scoring(body, content_type="application/json", contract=contract, max_rows=_MOST_ROWS)
