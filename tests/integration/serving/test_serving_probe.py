"""The probe passes an honest image, and names what is wrong with others; on every runtime that is here."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.deploy.runtime_bubblewrap import BubblewrapRuntime
from mlops.deploy.runtime_podman import PodmanRuntime
from mlops.deploy.runtimes import list_runtimes
from mlops.serving.image import build_image
from mlops.serving.probe import ProbeLimits, ProbeRequest, probe_image
from mlops.serving.probe_scratch import stop_left_over
from mlops.serving.runtime import RunRequest
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.socket_client import SocketClient
from mlops.serving.testing import tiny_contract, write_tiny_candidate
from mlops.training.contract import InputColumn

RUNTIMES = {"process": ProcessRuntime, "bubblewrap": BubblewrapRuntime, "podman": PodmanRuntime}
TOOLS = {"process": "sh", "bubblewrap": "bwrap", "podman": "podman"}


@pytest.fixture(scope="session")
def process_runtime(tmp_path_factory):
    return ProcessRuntime(tmp_path_factory.mktemp("process"))


def _request(bakery, **changes):
    given = {"layout": bakery.request.layout, "digest": bakery.built.digest, "candidate_folder": bakery.candidate}
    return ProbeRequest(**{**given, "clock": SystemClock(), **changes})


@pytest.mark.system
@pytest.mark.parametrize("name", RUNTIMES)
def test_an_honest_image_passes(bakery, tmp_path, name):
    if shutil.which(TOOLS[name]) is None:
        pytest.skip(f"{TOOLS[name]} is missing")
    result = probe_image(_request(bakery), runtime=RUNTIMES[name](tmp_path))
    assert (result.verdict, result.reasons) == ("PASS", ())
    assert result.runtime == name
    assert result.facts["golden_max_difference"] <= 1e-5
    assert result.facts["exit_code"] == 0
    assert result.facts["openapi_fuzz"]["ran"] and result.facts["openapi_fuzz"]["cases"] > 50
    if name == "podman":
        limits = {"cpus": 1.0, "memory_bytes": 512 << 20, "pids": 64}
        assert result.facts["process"]["limits"] == limits
    facts = json.loads(json.dumps(result.to_json()))["facts"]
    assert facts["malformed_requests"] > 50
    assert facts["broken_connections"] > 8
    assert (facts["process"]["files_open_for_writing"], facts["process"]["internet_sockets"]) == (0, 0)
    if name != "process":
        assert (facts["process"]["capabilities"], facts["process"]["seccomp"]) == ("0", 2)


def test_an_image_for_pictures_passes(bakery, process_runtime, tmp_path):
    column = InputColumn("image", "float32", (1, 28, 28), "tensor", minimum=0, maximum=1)
    candidate = tmp_path / "digits"
    write_tiny_candidate(candidate, contract=tiny_contract(product="digits", columns=[column]))
    built = build_image(bakery.request_with(product="digits", candidate_folder=candidate))
    result = probe_image(_request(bakery, digest=built.digest, candidate_folder=candidate), runtime=process_runtime)
    assert (result.verdict, result.reasons, result.product) == ("PASS", (), "digits")


def test_an_image_of_another_model_fails(bakery, process_runtime, tmp_path):
    write_tiny_candidate(tmp_path / "judged", seed=5)
    result = probe_image(_request(bakery, candidate_folder=tmp_path / "judged"), runtime=process_runtime)
    assert result.verdict == "FAIL"
    assert {reason.code for reason in result.reasons} == {"golden-differs"}


def test_limits_that_are_missed_are_named(bakery, process_runtime):
    limits = ProbeLimits(latency_p99_seconds=1e-9, memory_bytes=1)
    result = probe_image(_request(bakery, limits=limits), runtime=process_runtime)
    assert {reason.code for reason in result.reasons} == {"too-slow", "too-much-memory"}


def test_an_image_that_does_not_start_fails_with_its_log(bakery, process_runtime):
    spec = bakery.request.spec.model_copy(update={"environment": {"THREADS": "none"}})
    built = build_image(bakery.request_with(version="broken-start", spec=spec))
    result = probe_image(_request(bakery, digest=built.digest), runtime=process_runtime)
    assert [reason.code for reason in result.reasons] == ["not-ready"]
    assert "THREADS='none'" in result.reasons[0].text


PROBE = """
import sys
from pathlib import Path
from mlops.deploy.runtimes import list_runtimes
from mlops.serving.probe_scratch import name_instance, probe_scratch
from mlops.serving.runtime import RunRequest
state, name, layout, digest = sys.argv[1:]
runtime = next(it for it in list_runtimes(Path(state)) if it.name == name)
with probe_scratch() as sockets:
    runtime.start(RunRequest(name_instance(sockets, digest=digest), Path(layout), digest, sockets))
    print(sockets.parent, flush=True)
    sys.stdin.read()
"""


@pytest.mark.system
@pytest.mark.parametrize("name", ["podman", "process"])
def test_what_a_killed_probe_left_is_stopped_and_what_a_living_one_needs_is_not(bakery, tmp_path, name):
    if shutil.which(TOOLS[name]) is None:
        pytest.skip(f"{TOOLS[name]} is missing")
    runtime = next(it for it in list_runtimes(tmp_path) if it.name == name)
    command = [sys.executable, "-c", PROBE, str(tmp_path), name, str(bakery.request.layout), bakery.built.digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        scratch = Path(probe.stdout.readline().strip())
        assert stop_left_over(runtime) == ()
        (living,) = runtime.list_instances()
        probe.kill()
    assert stop_left_over(runtime) == (living.name,)
    assert runtime.list_instances() == ()
    assert not scratch.exists()


@pytest.mark.system
def test_the_unpacked_image_answers_a_real_looking_row_over_both_doors(bakery, tmp_path, unused_port, ask_ready):
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is missing")
    runtime = BubblewrapRuntime(tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        instance = runtime.start(
            RunRequest(
                name="real-row",
                layout=bakery.request.layout,
                digest=bakery.built.digest,
                socket_folder=Path(folder),
                tcp_port=unused_port,
            )
        )
        try:
            row = {
                "age": 39,
                "hours": 40.5,
                "gain": 2174,
                "workclass": "State-gov",
                "sex": "Male",
                "history": [[0, 0, 0], [0.5, 0, 1]],
            }
            answer = _wait_for(instance, {"dataframe_records": [row]})
            assert answer.status == 200, answer.text
            prediction = answer.json()["predictions"][0]
            assert prediction["label"] in ("<=50K", ">50K")
            assert sum(prediction["probabilities"]) == pytest.approx(1, abs=1e-6)
            assert answer.headers["x-model-version"] == "1"
            assert answer.headers["x-model-digest"] == bakery.request.evidence["candidate"]
            assert ask_ready(unused_port) == 200
        finally:
            assert runtime.stop(instance, timeout_seconds=15) in (0, None)
        assert not runtime.is_running(instance)


def _wait_for(instance, body, tries=200):
    import time

    from mlops.errors import ServingError

    for _ in range(tries):
        try:
            with SocketClient(instance.socket, timeout_seconds=10) as client:
                return client.ask_json("/invocations", body)
        except ServingError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
