"""The ASGI application: exact paths to answers, every fault of a caller to a 4xx in JSON.

Leaves to others: wire formats (inference.py, scoring.py), the model (onnx_model.py), sockets and signals (__main__.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .contract import BadRequestError
from .inference import parse_inference, render_inference
from .metrics import Metrics
from .onnx_model import LABEL, NotFiniteError, OnnxModel
from .openapi import describe_api
from .scoring import parse_scoring, render_scoring, tensor_of
from .settings import Settings

SERVER_NAME = "mlops-server"
SERVER_VERSION = "1"
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_EXTENSIONS = ["binary_tensor_data"]
_TRACE = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00 and what may follow it."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


Inference = Callable[["_Call"], Awaitable[Reply]]


@dataclass
class _Call:
    """One request being answered."""

    scope: Mapping[str, Any]
    headers: dict[bytes, bytes]
    body: bytes = b""


@dataclass(frozen=True)
class _Route:
    """What a path answers: GET from a function of nothing, POST by running a model."""

    get: Callable[[], Reply] | None = None
    post: Callable[[_Call], Awaitable[Reply]] | None = None
    model: OnnxModel | None = None


class Application:
    """All versions of all products in this process."""

    def __init__(self, models: list[OnnxModel], settings: Settings) -> None:
        self._settings = settings
        self._models = models
        self._metrics = Metrics()
        self._boot = os.urandom(8).hex()
        self._count = 0
        self.is_draining = False
        self._routes = self._make_routes()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        self._count += 1
        prediction = f"{self._boot}-{self._count:x}"
        self._metrics.in_flight += 1
        call = _Call(scope=scope, headers=dict(scope["headers"]))
        route = self._routes.get(scope["path"])
        try:
            reply = await self._answer(call, route, receive)
        except BadRequestError as error:
            reply = _refuse(error.status, str(error))
        except NotFiniteError:
            reply = _refuse(422, "the model gives no finite answer to these inputs")
        except TimeoutError:
            reply = _refuse(503, "the model did not answer in time")
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log("fault", prediction=prediction, error=f"{type(error).__name__}: {error}")
            reply = _refuse(500, "internal error; the log has it under this prediction id")
        finally:
            self._metrics.in_flight -= 1
        await _send(reply, send=send, extra=self._headers_of(route, call, prediction))
        self._note(call, route, reply=reply, prediction=prediction, seconds=time.perf_counter() - started)

    def log_event(self, event: str, **fields: Any) -> None:
        """One structured line about the server itself."""
        self._log(event, **fields)

    async def _answer(self, call: _Call, route: _Route | None, receive: Receive) -> Reply:
        if route is None:
            here = ", ".join(f"{model.name} version {model.version}" for model in self._models)
            return _refuse(404, f"there is nothing at {call.scope['path'][:200]}; this server has {here}")
        method = call.scope["method"]
        if method in ("GET", "HEAD") and route.get is not None:
            reply = route.get()
            return reply if method == "GET" else Reply(reply.status, b"", reply.headers)
        if method == "POST" and route.post is not None:
            if self._metrics.in_flight > self._settings.max_concurrency:
                return _refuse(503, "too many requests are being answered; try again", (b"retry-after", b"1"))
            call.body = await self._read_body(call, receive)
            return await route.post(call)
        allowed = ", ".join(
            name for name, handler in (("GET", route.get), ("HEAD", route.get), ("POST", route.post)) if handler
        )
        return _refuse(405, f"{method[:20]} is not possible here; {allowed} is", (b"allow", allowed.encode()))

    async def _read_body(self, call: _Call, receive: Receive) -> bytes:
        limit = self._settings.max_body_bytes
        declared = call.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise BadRequestError(f"the body is larger than {limit} bytes", status=413)
        encoding = call.headers.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            raise BadRequestError("compressed bodies are not accepted", status=415)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()  # bounded in time by connections.py
            if message["type"] == "http.disconnect":
                raise BadRequestError("the caller left before the body had arrived")
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise BadRequestError(f"the body is larger than {limit} bytes", status=413)
            if not message.get("more_body"):
                return b"".join((*parts, part)) if parts else part
            parts.append(part)

    async def _infer(self, call: _Call, model: OnnxModel) -> Reply:
        if call.headers.get(b"content-type", b"application/json").split(b";")[0].strip() not in _INFERENCE_TYPES:
            raise BadRequestError("the content type must be application/json or application/octet-stream", status=415)
        length = call.headers.get(b"inference-header-content-length")
        if length is not None and not length.isdigit():
            raise BadRequestError("inference-header-content-length is not a number")
        request = parse_inference(
            call.body,
            json_length=None if length is None else int(length),
            contract=model.contract,
            max_rows=self._settings.max_batch_rows,
        )
        answer = await model.predict(request.feed, request.rows)
        body, json_length = render_inference(request, answer, contract=model.contract, prefix=self._prefixes[model])
        if json_length is None:
            return Reply(200, body)
        return Reply(200, body, (_BINARY, (b"inference-header-content-length", b"%d" % json_length)))

    async def _score(self, call: _Call, model: OnnxModel) -> Reply:
        content_type = call.headers.get(b"content-type", b"application/json").split(b";")[0].strip().decode("latin-1")
        if content_type not in ("application/json", "text/csv"):
            raise BadRequestError("the content type must be application/json or text/csv", status=415)
        rows, feed = parse_scoring(
            call.body, content_type=content_type, contract=model.contract, max_rows=self._settings.max_batch_rows
        )
        answer = await model.predict(feed, rows)
        return Reply(200, render_scoring(answer))

    def _make_routes(self) -> dict[str, _Route]:
        newest = {model.name: model for model in sorted(self._models, key=_version_order)}
        self._prefixes = {model: _prefix(model) for model in self._models}
        self._fixed = {id(model): self._model_headers(model) for model in self._models}
        ready, live = self._ready, _json_reply({"live": True})
        server = {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": _EXTENSIONS}
        routes = {
            "/v2": _Route(get=lambda: _json_reply(server)),
            "/v2/health/live": _Route(get=lambda: live),
            "/v2/health/ready": _Route(get=ready),
            "/health": _Route(get=ready),
            "/ping": _Route(get=ready),
            "/version": _Route(get=lambda: _json_reply({"version": SERVER_VERSION})),
            "/metrics": _Route(get=self._render_metrics),
            "/openapi.json": _Route(get=lambda: self._api),
        }
        for name, model in newest.items():
            routes |= self._routes_of(f"/v2/models/{name}", model)
        for model in self._models:
            routes |= self._routes_of(f"/v2/models/{model.name}/versions/{model.version}", model)
        if len(newest) == 1:
            only = next(iter(newest.values()))
            routes["/invocations"] = _Route(post=lambda call: self._score(call, only), model=only)
        self._api = _json_reply(describe_api(self._models, sorted(routes)))
        return routes

    def _routes_of(self, path: str, model: OnnxModel) -> dict[str, _Route]:
        versions = [other.version for other in self._models if other.name == model.name]
        metadata = _json_reply(_describe_model(model, versions))
        return {
            path: _Route(get=lambda: metadata, model=model),
            f"{path}/ready": _Route(get=self._ready, model=model),
            f"{path}/infer": _Route(post=lambda call: self._infer(call, model), model=model),
        }

    def _ready(self) -> Reply:
        return _json_reply({"ready": not self.is_draining}, status=503 if self.is_draining else 200)

    def _render_metrics(self) -> Reply:
        runs = [(model.name, model.version, model.runs, model.rows) for model in self._models]
        return Reply(200, self._metrics.render(runs), ((b"content-type", b"text/plain; version=0.0.4"),))

    def _model_headers(self, model: OnnxModel) -> tuple[tuple[bytes, bytes], ...]:
        found = [(b"x-model-version", model.version.encode()), (b"x-model-digest", model.digest.encode())]
        if self._settings.image_digest:
            found.append((b"x-image-digest", self._settings.image_digest.encode()))
        return tuple(found)

    def _headers_of(self, route: _Route | None, call: _Call, prediction: str) -> Headers:
        headers: Headers = [(b"x-prediction-id", prediction.encode())]
        if route is not None and route.model is not None:
            headers.extend(self._fixed[id(route.model)])
        parent = call.headers.get(b"traceparent")
        if parent is not None and _TRACE.fullmatch(parent):
            headers.append((b"traceparent", parent))
        if self.is_draining:
            headers.append((b"connection", b"close"))
        return headers

    def _note(self, call: _Call, route: _Route | None, *, reply: Reply, prediction: str, seconds: float) -> None:
        if route is not None and route.model is not None and route.post is not None:
            self._metrics.count(route.model.name, route.model.version, status=reply.status, seconds=seconds)
        wanted = self._settings.request_log
        if wanted == "none" or (wanted == "errors" and reply.status < 400):
            return
        parent = call.headers.get(b"traceparent", b"").decode("latin-1")
        fields: dict[str, Any] = {"path": call.scope["path"][:200], "status": reply.status, "prediction": prediction}
        if reply.status >= 400:
            fields["error"] = json.loads(reply.body)["error"] if reply.body and reply.body[:1] == b"{" else ""
        if parent:
            fields["traceparent"] = parent[:55]
        self._log("request", **fields, seconds=round(seconds, 6))

    def _log(self, event: str, **fields: Any) -> None:
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        sys.stdout.write(json.dumps({"time": stamp, "event": event, **fields}) + "\n")


_INFERENCE_TYPES = (b"application/json", b"application/octet-stream", b"")


def _version_order(model: OnnxModel) -> tuple[bool, int, str]:
    return (model.version.isdecimal(), int(model.version) if model.version.isdecimal() else 0, model.version)


def _prefix(model: OnnxModel) -> str:
    parameters = json.dumps({"digest": model.digest})
    return (
        f'"model_name":{json.dumps(model.name)},"model_version":{json.dumps(model.version)},"parameters":{parameters},'
    )


def _describe_model(model: OnnxModel, versions: list[str]) -> dict[str, Any]:
    outputs = [
        {"name": output.name, "datatype": "FP32", "shape": [-1, *output.shape]} for output in model.contract.outputs
    ]
    label = {"name": LABEL, "datatype": "BYTES", "shape": [-1], "parameters": {"classes": list(model.contract.classes)}}
    return {
        "name": model.name,
        "versions": sorted(
            versions, key=lambda text: (not text.isdecimal(), int(text) if text.isdecimal() else 0, text)
        ),
        "platform": model.platform,
        "inputs": [tensor_of(column) for column in model.contract.inputs],
        "outputs": [*outputs, label],
        "parameters": {"version": model.version, "digest": model.digest, "evidence": model.evidence},
    }


def _json_reply(value: Any, *, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode())


def _refuse(status: int, message: str, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, json.dumps({"error": message}).encode(), (_JSON, *headers))


async def _send(reply: Reply, *, send: Send, extra: Headers) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body)), *extra]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
