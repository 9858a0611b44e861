"""`/invocations`: the scoring formats of MLflow and SageMaker (JSON and CSV) to checked columns, and answers back.

Leaves to others: columns' rules (contract.py) and running the model (onnx_model.py).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from .contract import BadRequestError, Column, Contract, flatten
from .inference import parse_json
from .onnx_model import PROBABILITIES, Answer, Feed

_FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")


def parse_scoring(body: bytes, *, content_type: str, contract: Contract, max_rows: int) -> tuple[int, Feed]:
    """Rows and columns of a scoring request.

    Raises:
        BadRequestError: It is in none of the formats, or does not fit the model.
    """
    table = _table_of_csv(body, contract) if content_type == "text/csv" else _table_of_json(parse_json(body))
    contract.require_complete(table)
    rows = {len(values) for values in table.values()}
    if len(rows) != 1:
        raise BadRequestError("the columns do not have the same number of rows")
    count = rows.pop()
    if not 0 < count <= max_rows:
        raise BadRequestError(f"a request has 1 to {max_rows} rows, this one {count}")
    return count, {name: _check_column(contract.by_name[name], values) for name, values in table.items()}


def render_scoring(answer: Answer) -> bytes:
    """`{"predictions": [{"label": …, "probabilities": […]}, …]}`."""
    rows = zip(answer.labels(), answer.output(PROBABILITIES).tolist(), strict=True)
    return json.dumps({"predictions": [{"label": label, "probabilities": values} for label, values in rows]}).encode()


def _table_of_json(content: Any) -> dict[str, list[Any]]:
    if not isinstance(content, dict):
        raise BadRequestError("the body is not a JSON object")
    given = [name for name in _FORMATS if name in content]
    unknown = sorted(set(content) - {*_FORMATS, "params", "signature_name"})
    if len(given) != 1 or unknown:
        raise BadRequestError(f"the body must hold exactly one of {', '.join(_FORMATS)}")
    value = content[given[0]]
    if given[0] == "dataframe_split":
        return _table_of_split(value)
    if isinstance(value, dict) and given[0] != "dataframe_records":
        return {name: _as_list(values, name) for name, values in value.items()}
    return _table_of_records(value)


def _table_of_split(value: Any) -> dict[str, list[Any]]:
    columns = value.get("columns") if isinstance(value, dict) else None
    rows = value.get("data") if isinstance(value, dict) else None
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise BadRequestError("dataframe_split needs columns and data")
    if not all(isinstance(name, str) for name in columns) or len(set(columns)) != len(columns):
        raise BadRequestError("columns must be names, each standing once")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise BadRequestError(f"each row of data must be a list of {len(columns)} values")
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


def _table_of_records(value: Any) -> dict[str, list[Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        raise BadRequestError("rows must be a list of objects, one per row")
    names = value[0].keys()
    if any(row.keys() != names for row in value):
        raise BadRequestError("the rows do not all have the same fields")
    return {name: [row[name] for row in value] for name in names}


def _table_of_csv(body: bytes, contract: Contract) -> dict[str, list[Any]]:
    try:
        lines = list(csv.reader(io.StringIO(body.decode()), strict=True))
    except (ValueError, csv.Error) as error:
        raise BadRequestError(f"the body is not CSV: {str(error)[:200]}") from None
    if not lines:
        raise BadRequestError("the body is empty; its first line must name the columns")
    table = _table_of_split({"columns": lines[0], "data": [line for line in lines[1:] if line]})
    return {name: _parse_cells(contract.by_name.get(name), values) for name, values in table.items()}


def _parse_cells(column: Column | None, values: list[str]) -> list[Any]:
    if column is None or column.categories is not None:
        return values
    try:
        return [float(value) for value in values]
    except ValueError:
        raise BadRequestError(f"input {column.name!r}: a cell is not a number") from None


def _check_column(column: Column, values: list[Any]) -> list[Any]:
    flat = flatten(values, shape=[len(values), *column.shape], say=lambda: f"input {column.name!r}")
    if not column.shape and any(type(value) is list for value in flat):
        flat = flatten(values, shape=[len(values), 1], say=lambda: f"input {column.name!r}")
    return column.check_values(flat)


def _as_list(values: Any, name: str) -> list[Any]:
    if not isinstance(values, list):
        raise BadRequestError(f"input {str(name)[:60]!r} must be a list, one value per row")
    return values


def tensor_of(column: Column) -> Mapping[str, Any]:
    """How an input is described in metadata and OpenAPI."""
    datatype = "BYTES" if column.categories is not None else ("FP32" if column.dtype == "float32" else "INT64")
    found: dict[str, Any] = {"name": column.name, "datatype": datatype, "shape": [-1, *column.shape]}
    limits: dict[str, Any] = {}
    if column.categories is not None:
        limits["categories"] = list(column.categories)
    else:
        limits = {
            key: value for key, value in (("minimum", column.minimum), ("maximum", column.maximum)) if value is not None
        }
        if column.is_whole:
            limits["integer"] = True
    return {**found, "parameters": limits} if limits else found
