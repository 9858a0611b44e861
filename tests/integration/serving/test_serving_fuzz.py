"""schemathesis reads the actual image's own OpenAPI document and looks for answers that contradict it."""

import os
import shutil
import socket
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime

_EXAMPLES = 25 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@pytest.fixture
def address(bakery, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runtime, sockets = ProcessRuntime(tmp_path), Path(tempfile.mkdtemp(prefix="sock-"))
    request = RunRequest(
        name="fuzz",
        layout=bakery.request.layout,
        digest=bakery.built.digest,
        socket_folder=sockets,
        tcp_port=port,
        environment={"REQUEST_LOG": "none"},
    )
    instance = runtime.start(request)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    assert runtime.stop(instance, timeout_seconds=15) == 0
    shutil.rmtree(sockets)


@pytest.mark.filterwarnings("default")
def test_no_answer_contradicts_the_document(address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    checks = (not_a_server_error, status_code_conformance, response_schema_conformance)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attempt(case):
            nonlocal tried
            tried += 1
            case.validate_response(case.call(), checks=checks)

        attempt()
    assert tried > 50
