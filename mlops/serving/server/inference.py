"""Open Inference Protocol v2: a request's JSON and binary tensors to checked columns, and answers back.

The specification: kserve/open-inference-protocol (REST) and Triton's binary tensor data extension.
Leaves to others: columns' rules (contract.py) and running the model (onnx_model.py).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .contract import BadRequestError, Column, Contract, flatten
from .onnx_model import LABEL, Answer, Feed

_DTYPES = {
    "FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
_WHOLE = {name for name in _DTYPES if "INT" in name}
_KNOWN_FIELDS = {"id", "inputs", "outputs", "parameters", "model_name", "model_version"}
_ID_LENGTH = 256


@dataclass(frozen=True)
class InferenceRequest:
    """A checked request."""

    identity: str | None
    rows: int
    feed: Feed
    outputs: tuple[str, ...] | None
    """Asked for; None means all."""
    binary: frozenset[str] | None
    """Outputs to be sent in binary; None means every one."""


def parse_json(body: bytes) -> Any:
    """JSON without NaN, infinity or absurd nesting.

    Raises:
        BadRequestError: Not such JSON.
    """
    try:
        return _DECODER.decode(body.decode())
    except BadRequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {str(error)[:200]}") from None


def parse_inference(body: bytes, *, json_length: int | None, contract: Contract, max_rows: int) -> InferenceRequest:
    """A request body (JSON, followed by binary tensors when `json_length` is given).

    Raises:
        BadRequestError: It does not fit the protocol or the model.
    """
    if json_length is not None and not 0 < json_length <= len(body):
        raise BadRequestError("inference-header-content-length is not within the body")
    content = parse_json(body if json_length is None else body[:json_length])
    if not isinstance(content, dict):
        raise BadRequestError("the body is not a JSON object")
    if not content.keys() <= _KNOWN_FIELDS:
        unknown = ", ".join(sorted(content.keys() - _KNOWN_FIELDS)[:10])
        raise BadRequestError(f"unknown field in the request: {unknown}")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise BadRequestError("inputs must be a list of tensors")
    reader = _BinaryReader(body, at=len(body) if json_length is None else json_length)
    rows, feed = _read_inputs(inputs, contract=contract, reader=reader, max_rows=max_rows)
    reader.require_end()
    identity = content.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _ID_LENGTH):
        raise BadRequestError(f"id must be a string of at most {_ID_LENGTH} characters")
    outputs, binary = _read_outputs(content, contract)
    return InferenceRequest(identity=identity, rows=rows, feed=feed, outputs=outputs, binary=binary)


def render_inference(
    request: InferenceRequest, answer: Answer, *, contract: Contract, prefix: str
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part when binary tensors follow.

    Args:
        request: What was asked.
        answer: What the model said.
        contract: Of the model.
        prefix: The start of the JSON object, with model name, version and parameters.
    """
    parts, blobs = [], []
    wanted = request.outputs or (*(output.name for output in contract.outputs), LABEL)
    for name in wanted:
        is_binary = request.binary is None or name in request.binary
        head, blob = _render_output(name, answer, contract=contract, is_binary=is_binary)
        parts.append(head)
        if is_binary:
            blobs.append(blob)
    identity = "" if request.identity is None else f'"id":{json.dumps(request.identity)},'
    text = f'{{{identity}{prefix}"outputs":[{",".join(parts)}]}}'.encode()
    return (text + b"".join(blobs), len(text)) if blobs else (text, None)


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequestError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _BinaryReader:
    """Takes the raw tensors that follow the JSON, in order."""

    def __init__(self, body: bytes, *, at: int) -> None:
        self._body = body
        self._at = at

    def take(self, size: Any, name: str) -> bytes:
        if type(size) is not int or size < 0 or self._at + size > len(self._body):
            raise BadRequestError(f"input {name!r}: binary_data_size is not within the body")
        self._at += size
        return self._body[self._at - size : self._at]

    def require_end(self) -> None:
        if self._at != len(self._body):
            raise BadRequestError(f"{len(self._body) - self._at} bytes follow the last tensor")


def _read_inputs(inputs: list[Any], *, contract: Contract, reader: _BinaryReader, max_rows: int) -> tuple[int, Feed]:
    feed: Feed = {}
    rows = -1
    by_name = contract.by_name
    for tensor in inputs:
        if type(tensor) is not dict or type(name := tensor.get("name")) is not str:
            raise BadRequestError("each input must be an object with a name")
        column = by_name.get(name)
        if column is None:
            contract.require_complete([item.get("name") for item in inputs if isinstance(item, dict)])
            raise BadRequestError(f"input {name!r} is unknown")
        if name in feed:
            raise BadRequestError(f"input {name!r} stands twice")
        count = _read_rows(tensor.get("shape"), column)
        if rows not in (-1, count):
            raise BadRequestError(f"input {name!r} has {count} rows, another one {rows}")
        if not 0 < count <= max_rows:
            raise BadRequestError(f"a request has 1 to {max_rows} rows, this one {count}")
        rows = count
        feed[name] = _read_tensor(tensor, column, rows=rows, reader=reader)
    if len(feed) != len(contract.inputs):
        contract.require_complete(feed)
    return rows, feed


def _read_rows(shape: Any, column: Column) -> int:
    """Rows of a shape `[rows, …]`; a scalar column may also be `[rows, 1]`."""
    if type(shape) is list and len(shape) == 1 and type(shape[0]) is int and not column.shape:
        return int(shape[0])
    if type(shape) is not list or not shape or not all(type(size) is int for size in shape):
        raise BadRequestError(f"input {column.name!r}: shape must be a list of whole numbers")
    if tuple(shape[1:]) != column.shape and not (not column.shape and shape[1:] == [1]):
        raise BadRequestError(f"input {column.name!r}: shape {shape} is not {['rows', *column.shape]}")
    return int(shape[0])


def _read_tensor(tensor: dict[str, Any], column: Column, *, rows: int, reader: _BinaryReader) -> Any:
    datatype = tensor.get("datatype")
    parameters = tensor.get("parameters")
    if parameters is not None:
        if type(parameters) is not dict:
            raise BadRequestError(f"input {column.name!r}: parameters must be an object")
        if "binary_data_size" in parameters:
            if "data" in tensor:
                raise BadRequestError(f"input {column.name!r} has both data and binary_data_size")
            blob = reader.take(parameters["binary_data_size"], column.name)
            return _read_binary(blob, column, rows=rows, datatype=datatype)
    data = tensor.get("data")
    if type(data) is not list or len(data) != rows or column.shape or type(data[0]) is list:
        shape = tensor["shape"]
        data = flatten(data, shape=shape, say=lambda: f"input {column.name!r}")
    if datatype == "BYTES":
        return column.encode(data)
    if datatype not in _DTYPES:
        raise BadRequestError(f"input {column.name!r}: datatype {_clip(datatype)} is not {_accepted(column)}")
    _require_datatype(column, datatype)
    return column.check_numbers(data)


def _require_datatype(column: Column, datatype: str) -> None:
    if column.categories is not None and datatype not in _WHOLE:
        raise BadRequestError(f"input {column.name!r}: datatype {datatype} is not {_accepted(column)}")


def _read_binary(blob: bytes, column: Column, *, rows: int, datatype: Any) -> Any:
    if datatype == "BYTES":
        return column.encode(_read_strings(blob, column, count=rows * column.width))
    if datatype not in _DTYPES:
        raise BadRequestError(f"input {column.name!r}: datatype {_clip(datatype)} is not {_accepted(column)}")
    _require_datatype(column, datatype)
    dtype = np.dtype(_DTYPES[datatype])
    if len(blob) != rows * column.width * dtype.itemsize:
        raise BadRequestError(f"input {column.name!r}: {len(blob)} bytes do not fill its shape")
    return column.check_array(np.frombuffer(blob, dtype=dtype))


def _read_strings(blob: bytes, column: Column, *, count: int) -> list[str]:
    """Strings of the binary extension: a little-endian length of four bytes, then UTF-8."""
    found: list[str] = []
    at = 0
    try:
        while at < len(blob):
            (size,) = struct.unpack_from("<I", blob, at)
            piece = blob[at + 4 : at + 4 + size]
            if len(piece) != size:
                raise ValueError("cut off")
            found.append(piece.decode())
            at += 4 + size
    except (struct.error, ValueError):
        raise BadRequestError(f"input {column.name!r}: its binary strings cannot be read") from None
    if len(found) != count:
        raise BadRequestError(f"input {column.name!r}: {len(found)} strings do not fill its shape")
    return found


def _read_outputs(
    content: Mapping[str, Any], contract: Contract
) -> tuple[tuple[str, ...] | None, frozenset[str] | None]:
    parameters = content.get("parameters")
    if parameters is not None and type(parameters) is not dict:
        raise BadRequestError("parameters must be an object")
    is_binary = bool(parameters and parameters.get("binary_data_output"))
    asked = content.get("outputs")
    if asked is None or asked == []:
        return None, None if is_binary else frozenset()
    if type(asked) is not list:
        raise BadRequestError("outputs must be a list")
    known = {*(output.name for output in contract.outputs), LABEL}
    names: list[str] = []
    binary: set[str] = set()
    for item in asked:
        name = item.get("name") if type(item) is dict else None
        if type(name) is not str or name not in known or name in names:
            raise BadRequestError(
                f"output {_clip(name)} is unknown or stands twice; there are {', '.join(sorted(known))}"
            )
        own = item.get("parameters") or {}
        if type(own) is not dict or "classification" in own:
            raise BadRequestError(f"output {name!r}: its parameters cannot be used")
        names.append(name)
        if own.get("binary_data", is_binary):
            binary.add(name)
    return tuple(names), frozenset(binary)


def _render_output(name: str, answer: Answer, *, contract: Contract, is_binary: bool) -> tuple[str, bytes]:
    if name == LABEL:
        shape, datatype = [answer.rows], "BYTES"
        labels = answer.labels()
        data = f'"data":{json.dumps(labels)}'
        blob = (
            b"".join(struct.pack("<I", len(label.encode())) + label.encode() for label in labels) if is_binary else b""
        )
    else:
        array = answer.output(name)
        shape, datatype = list(array.shape), "FP32"
        # repr of a list of finite floats is JSON
        data = "" if is_binary else f'"data":{array.ravel().tolist()!r}'
        blob = array.astype("<f4", copy=False).tobytes() if is_binary else b""
    if is_binary:
        data = f'"parameters":{{"binary_data_size":{len(blob)}}}'
    return f'{{"name":"{name}","datatype":"{datatype}","shape":{shape},{data}}}', blob


def _accepted(column: Column) -> str:
    return "BYTES or INT64" if column.categories is not None else ("FP32" if column.dtype == "float32" else "INT64")


def _clip(value: Any) -> str:
    return repr(value)[:60]
