"""The server's API as an OpenAPI 3.1 document, made from the contracts of the models it serves.

Leaves to others: answering (application.py).
"""

from __future__ import annotations

from typing import Any

from .contract import Column
from .onnx_model import LABEL, OnnxModel

_ERROR = {
    "description": "A sentence says what is wrong.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
        }
    },
}
_REFUSALS = dict.fromkeys(("400", "405", "408", "413", "415", "422", "503"), _ERROR)


def describe_api(models: list[OnnxModel], paths: list[str]) -> dict[str, Any]:
    """The document for all paths that the server answers."""
    by_path = {f"/v2/models/{model.name}/versions/{model.version}": model for model in models}
    described: dict[str, Any] = {}
    for path in paths:
        if path.endswith("/infer"):
            prefix = path.removesuffix("/infer")
            model = by_path.get(prefix) or next(item for item in models if prefix == f"/v2/models/{item.name}")
            described[path] = {"post": _describe_inference(path, model)}
        elif path == "/invocations":
            described[path] = {"post": _describe_scoring(path, models[0])}
        else:
            described[path] = {"get": _describe_reading(path)}
    return {
        "openapi": "3.1.0",
        "info": {"title": ", ".join(sorted({model.name for model in models})), "version": "2"},
        "paths": described,
    }


def _describe_reading(path: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    answers: dict[str, Any] = {"200": {"description": "As its name says.", "content": {kind: {}}}}
    if path in ("/ping", "/health") or path.endswith("/ready"):
        answers["503"] = {"description": "Not ready.", "content": {"application/json": {}}}
    return {"operationId": "get" + path.replace("/", "_").replace(".", "_"), "responses": answers}


def _describe_inference(path: str, model: OnnxModel) -> dict[str, Any]:
    tensors = [_describe_tensor(column) for column in model.contract.inputs]
    outputs = [*(output.name for output in model.contract.outputs), LABEL]
    request = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": 256},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "prefixItems": tensors, "minItems": len(tensors), "maxItems": len(tensors)},
            "outputs": {
                "type": "array",
                "items": {"type": "object", "properties": {"name": {"enum": outputs}}, "required": ["name"]},
            },
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
    answer = {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "outputs": {"type": "array"},
        },
        "required": ["model_name", "outputs"],
    }
    return _describe_post(path, request, answer)


def _describe_scoring(path: str, model: OnnxModel) -> dict[str, Any]:
    row = {
        "type": "object",
        "properties": {column.name: _describe_row_value(column) for column in model.contract.inputs},
        "required": [column.name for column in model.contract.inputs],
        "additionalProperties": False,
    }
    request = {
        "type": "object",
        "properties": {"dataframe_records": {"type": "array", "items": row, "minItems": 1}},
        "required": ["dataframe_records"],
        "additionalProperties": False,
    }
    answer = {"type": "object", "properties": {"predictions": {"type": "array"}}, "required": ["predictions"]}
    return _describe_post(path, request, answer)


def _describe_post(path: str, request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": "post" + path.replace("/", "_").replace(".", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "The model's answer.", "content": {"application/json": {"schema": answer}}},
            **_REFUSALS,
        },
    }


def _describe_tensor(column: Column) -> dict[str, Any]:
    is_category = column.categories is not None
    return {
        "type": "object",
        "properties": {
            "name": {"const": column.name},
            "datatype": {"const": "BYTES" if is_category else ("FP32" if column.dtype == "float32" else "INT64")},
            "shape": {"const": [1, *column.shape]},
            "data": {
                "type": "array",
                "items": _describe_value(column),
                "minItems": column.width,
                "maxItems": column.width,
            },
        },
        "required": ["name", "datatype", "shape", "data"],
    }


def _describe_value(column: Column) -> dict[str, Any]:
    if column.categories is not None:
        return {"enum": list(column.categories)}
    return {"type": "integer" if column.is_whole else "number", "minimum": column.low, "maximum": column.high}


def _describe_row_value(column: Column) -> dict[str, Any]:
    if not column.shape:
        return _describe_value(column)
    return {"type": "array", "items": _describe_value(column), "minItems": column.width, "maxItems": column.width}
