"""The fuzzer against servers that keep or break their own OpenAPI document."""

import http.server
import json
import socketserver
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mlops.serving.fuzzing import FuzzResult, fuzz_api

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "double", "version": "1"},
    "paths": {
        "/double": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}},
                                "required": ["value"],
                            }
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "done",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "properties": {"double": {"type": "integer"}},
                                    "required": ["double"],
                                }
                            }
                        },
                    },
                    "400": {"description": "refused"},
                    "405": {"description": "another method"},
                },
            }
        }
    },
}


def honest(body):
    try:
        value = json.loads(body)["value"]
        return (200, {"double": 2 * value}) if type(value) is int and 0 <= value <= 9 else (400, {})
    except (ValueError, KeyError, TypeError):
        return 400, {}


SERVERS = {
    "an honest one": (honest, ""),
    "one that fails on bad input": (lambda body: (500, {}) if honest(body)[0] == 400 else honest(body), "Server error"),
    "one with a status of its own": (lambda body: (418, {}), "Undocumented status code"),
    "one that answers in another form": (
        lambda body: (200, {"twice": 1}) if honest(body)[0] == 200 else honest(body), "Response violates schema",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", SERVERS)
def test_a_contradiction_is_found_in(name):
    answer, text = SERVERS[name]
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, DOCUMENT) if self.path == "/openapi.json" else self._send(405, {})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append(honest(body)[0])
            self._send(*answer(body))

        def _send(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

        def address_string(self):
            return "socket"

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / "s"
        with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            found = fuzz_api(path, examples=20)
            server.shutdown()
    assert set(asked) == {200, 400}, "allowed and forbidden input was tried"
    assert found.facts()["cases"] >= 20
    assert (not found.contradictions) if not text else any(text in line for line in found.contradictions)


def test_without_schemathesis_the_result_says_that_nothing_was_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "schemathesis", None)
    found = fuzz_api(Path("/nowhere"), examples=1)
    assert found == FuzzResult(None)
    assert found.facts()["ran"] is False and "schemathesis" in found.facts()["why"]
