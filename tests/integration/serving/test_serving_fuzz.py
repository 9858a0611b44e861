"""schemathesis reads the actual image's own OpenAPI document and looks for answers that contradict it."""

import os
import shutil
import tempfile
import time
from pathlib import Path

from mlops.serving.fuzzing import fuzz_api
from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.socket_client import talk

_EXAMPLES = 25 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))


def test_no_answer_contradicts_the_document(bakery, tmp_path):
    runtime, sockets = ProcessRuntime(tmp_path), Path(tempfile.mkdtemp(prefix="sock-"))
    request = RunRequest(
        name="fuzz",
        layout=bakery.request.layout,
        digest=bakery.built.digest,
        socket_folder=sockets,
        environment={"REQUEST_LOG": "none"},
    )
    instance = runtime.start(request)
    for _ in range(600):
        if talk(instance.socket, [b"GET /ping HTTP/1.0\r\n\r\n"], timeout_seconds=5):
            break
        time.sleep(0.05)
    found = fuzz_api(instance.socket, examples=_EXAMPLES)
    assert runtime.stop(instance, timeout_seconds=15) == 0
    shutil.rmtree(sockets)
    assert found.tool and found.contradictions == ()
    assert found.cases > 50
