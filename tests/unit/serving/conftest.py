"""The server's application in this process, asked through ASGI without any socket."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops.provenance.digest import canonical_json
from mlops.serving.golden import make_golden_requests, render_golden
from mlops.serving.server.application import Application
from mlops.serving.server.onnx_model import OnnxModel, load_models
from mlops.serving.server.settings import Settings
from mlops.serving.testing import tiny_contract, write_tiny_candidate

CANDIDATE = "sha256:" + "c" * 64


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Server:
    """An application and a loop to ask it in."""

    def __init__(self, models: list[OnnxModel], settings: Settings) -> None:
        self.models = models
        self.application = Application(models, settings)

    def ask(self, method, path, body=b"", headers=(), **options) -> Answer:
        return self.ask_together([(method, path, body, headers, options)])[0]

    def infer(self, content, path="/v2/models/income/infer", headers=()) -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", path, body, (("content-type", "application/json"), *headers))

    def score(self, content, kind="application/json") -> Answer:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", "/invocations", body, (("content-type", kind),))

    def ask_together(self, calls) -> list[Answer]:
        async def run():
            return await asyncio.gather(*(self._ask(*call[:4], **(call[4] if len(call) > 4 else {})) for call in calls))

        return asyncio.run(run())

    async def _ask(self, method, path, body, headers, chunk=1 << 30):
        parts = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]
        sent = []

        async def receive():
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        }
        await self.application(scope, receive, send)
        head, tail = sent
        found = {name.decode(): value.decode() for name, value in head["headers"]}
        return Answer(head["status"], found, tail["body"])


def write_model_folder(root: Path, *, product="income", version="1", seed=0) -> Path:
    """The model layer of an image, as a folder."""
    folder = root / product / version
    contract = tiny_contract(product=product)
    write_tiny_candidate(folder, contract=contract, seed=seed)
    (folder / "golden.json").write_bytes(
        canonical_json(render_golden(make_golden_requests(contract), contract=contract))
    )
    (folder / "evidence.json").write_bytes(canonical_json({"candidate": CANDIDATE}))
    return root


@pytest.fixture(scope="session")
def model_root(tmp_path_factory) -> Path:
    root = write_model_folder(tmp_path_factory.mktemp("models"))
    return write_model_folder(root, version="10", seed=1)


@pytest.fixture
def make_server(model_root, tmp_path):
    """A server of one version (or of two with `versions=2`)."""
    made = []

    def make(*, versions=1, batching=True, **settings) -> Server:
        used = Settings(models=str(model_root), request_log="none", batching=batching, **settings)
        models = load_models(used)
        for model in models:
            model.warm_up()
        kept = models if versions == 2 else [model for model in models if model.version == "1"]
        made.extend(models)
        return Server(kept, used)

    yield make
    for model in made:
        model.close()


@pytest.fixture
def server(make_server) -> Server:
    return make_server()


@pytest.fixture
def good():
    """A good request with one row."""
    return {
        "id": "a",
        "inputs": [
            {"name": "age", "datatype": "FP32", "shape": [1], "data": [39]},
            {"name": "hours", "datatype": "FP32", "shape": [1, 1], "data": [40.5]},
            {"name": "gain", "datatype": "FP64", "shape": [1], "data": [-2174]},
            {"name": "workclass", "datatype": "BYTES", "shape": [1], "data": ["Private"]},
            {"name": "sex", "datatype": "INT64", "shape": [1], "data": [1]},
            {"name": "history", "datatype": "FP32", "shape": [1, 2, 3], "data": [0, 0.5, 1, -1, 0, 0]},
        ],
    }
