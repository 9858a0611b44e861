"""Requests that a server must refuse with a 4xx: each is a good request with one thing wrong.

Leaves to others: sending them (probe.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlops.training.contract import Contract

_JSON: Mapping[str, str] = {"content-type": "application/json"}


@dataclass(frozen=True)
class MalformedRequest:
    """One bad request."""

    name: str
    """What is wrong, as a sentence."""
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)


def make_malformed_requests(good: Mapping[str, Any], *, contract: Contract) -> tuple[MalformedRequest, ...]:
    """Bad variants of a good inference request with one row.

    Args:
        good: In the Open Inference Protocol v2.
        contract: Of the model.
    """
    path = f"/v2/models/{contract.product}/infer"
    changed = [
        MalformedRequest(name=name, method="POST", path=path, body=_changed(good, change))
        for name, change in _CHANGES.items()
    ]
    raw = [MalformedRequest(name=name, method="POST", path=path, body=body) for name, body in _RAW_BODIES.items()]
    return (*changed, *raw, *_of_columns(good, path=path, contract=contract), *_of_protocol(good, path=path))


def make_broken_connections(contract: Contract) -> dict[str, tuple[bytes, ...]]:
    """What is no clean HTTP, or never ends: name to the bytes that are sent. Each must be refused and cut off."""
    head = (
        f"POST /v2/models/{contract.product}/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n".encode()
    )
    return {
        "no HTTP": (b"\x16\x03\x01hello\r\n\r\n",),
        "two lengths": (head + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",),
        "a length and chunks": (head + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",),
        "a length that is no number": (head + b"content-length: x\r\n\r\n",),
        "a negative length": (head + b"content-length: -1\r\n\r\n",),
        "a chunk whose size is no number": (head + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",),
        "an encoding beside chunks": (head + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",),
        "a space before the colon": (b"GET /ping HTTP/1.1\r\nhost : x\r\n\r\n",),
        "a head without measure": (b"GET /ping HTTP/1.1\r\n" + b"x-a: %b\r\n" % (b"y" * 8_000) * 10,),
        "half a head": (b"GET /ping HT",),
        "half a body": (head + b"content-length: 100\r\n\r\n", b"{"),
    }


def _of_columns(good: Mapping[str, Any], *, path: str, contract: Contract) -> list[MalformedRequest]:
    found = []
    for index, column in enumerate(contract.inputs):
        bad: list[tuple[str, Any]] = [("a null", None), ("an object", {}), ("true", True), ("1e400", "1e400")]
        if column.categories is not None:
            bad += [("an unknown category", "no such category"), ("an empty category", "")]
        else:
            bad += [("a word", "many")]
            if column.maximum is not None:
                bad.append(("a number above the range", column.maximum + 1))
            if column.minimum is not None:
                bad.append(("a number below the range", column.minimum - 1))
            if column.integer:
                bad.append(("a fraction", 0.5 if column.minimum is None else column.minimum + 0.5))
        for name, value in bad:
            content = copy.deepcopy(dict(good))
            given = content["inputs"][index]["data"]
            content["inputs"][index]["data"] = _with_first(given, value) if column.shape else [value]
            body = json.dumps(content).replace('"1e400"', "1e400").encode()
            found.append(MalformedRequest(name=f"{column.name} is {name}", method="POST", path=path, body=body))
    return found


def _with_first(nested: Any, value: Any) -> Any:
    """Nested lists with another value in their first place, so that only that value is wrong."""
    return [_with_first(nested[0], value), *nested[1:]] if isinstance(nested, list) else value


def _of_protocol(good: Mapping[str, Any], *, path: str) -> list[MalformedRequest]:
    body = json.dumps(good).encode()
    csv = {"content-type": "text/csv"}
    compressed = {**_JSON, "content-encoding": "gzip"}
    binary = {**_JSON, "inference-header-content-length": str(len(body) + 1)}
    return [
        MalformedRequest(name="an unknown path", method="GET", path="/v2/models/nobody"),
        MalformedRequest(name="a path with dots", method="GET", path="/v2/../../etc/passwd"),
        MalformedRequest(name="a path with encoded dots", method="GET", path="/v2/models/%2e%2e/%2e%2e/etc/passwd"),
        MalformedRequest(name="GET where POST is due", method="GET", path=path),
        MalformedRequest(name="DELETE of a model", method="DELETE", path=path.removesuffix("/infer")),
        MalformedRequest(name="CSV for inference", method="POST", path=path, body=body, headers=csv),
        MalformedRequest(name="a compressed body", method="POST", path=path, body=body, headers=compressed),
        MalformedRequest(name="a JSON part longer than the body", method="POST", path=path, body=body, headers=binary),
        MalformedRequest(name="a body of nine megabytes", method="POST", path=path, body=b" " * (9 << 20)),
    ]


def _changed(good: Mapping[str, Any], change: Callable[[dict[str, Any]], object]) -> bytes:
    content = copy.deepcopy(dict(good))
    change(content)
    return json.dumps(content).encode()


_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no inputs": lambda content: content.pop("inputs"),
    "an empty list of inputs": lambda content: content.update(inputs=[]),
    "inputs that are an object": lambda content: content.update(inputs={}),
    "an input is missing": lambda content: content["inputs"].pop(),
    "an input is unknown": lambda content: content["inputs"].append({**content["inputs"][0], "name": "nobody"}),
    "an input stands twice": lambda content: content["inputs"].append(content["inputs"][0]),
    "an input without a name": lambda content: content["inputs"][0].pop("name"),
    "an input without a shape": lambda content: content["inputs"][0].pop("shape"),
    "an input without a datatype": lambda content: content["inputs"][0].pop("datatype"),
    "an input without data": lambda content: content["inputs"][0].pop("data"),
    "an unknown datatype": lambda content: content["inputs"][0].update(datatype="COMPLEX"),
    "a negative shape": lambda content: content["inputs"][0].update(shape=[-1]),
    "a shape of no rows": lambda content: content["inputs"][0].update(shape=[0], data=[]),
    "a huge shape": lambda content: content["inputs"][0].update(shape=[10**12]),
    "a shape of words": lambda content: content["inputs"][0].update(shape=["1"]),
    "a shape that does not fit": lambda content: content["inputs"][0].update(shape=[1, 2, 3]),
    "more data than shape": lambda content: content["inputs"][0].update(data=content["inputs"][0]["data"] * 2),
    "data that is a word": lambda content: content["inputs"][0].update(data="39"),
    "an id that is a number": lambda content: content.update(id=5),
    "an unknown output": lambda content: content.update(outputs=[{"name": "nobody"}]),
    "outputs that are words": lambda content: content.update(outputs="all"),
    "a binary size without bytes": lambda content: content["inputs"][0].update(parameters={"binary_data_size": 4}),
    "an unknown field": lambda content: content.update(surprise=1),
}
_RAW_BODIES = {
    "an empty body": b"",
    "a body that is no JSON": b"{",
    "a body that is a list": b"[]",
    "a body that is NaN": b"NaN",
    "a body that is not UTF-8": b'{"inputs": "\xff\xfe"}',
    "a body nested a thousand deep": b"[" * 1_000 + b"]" * 1_000,
    "a body nested deeper than the stack": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
