"""The image with torch, built from the real lock, booted and tried out: 180 MB."""

import shutil

import pytest

from mlops.clock import SystemClock
from mlops.deploy.runtime_bubblewrap import BubblewrapRuntime
from mlops.deploy.runtime_podman import PodmanRuntime
from mlops.errors import EnvironmentFault
from mlops.serving.content_store import ContentStore
from mlops.serving.image import build_image
from mlops.serving.probe import ProbeLimits, ProbeRequest, probe_image
from mlops.serving.python_wheels import fetch_wheels, load_wheel_lock
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.testing import write_torch_candidate
from mlops.serving.verification import verify_image

pytestmark = pytest.mark.system
RUNTIMES = {"podman": (PodmanRuntime, "podman"), "bubblewrap": (BubblewrapRuntime, "bwrap")}
QUICK = ProbeLimits(fuzz_examples=2, latency_requests=50)


@pytest.fixture(scope="module")
def torch_image(bakery, tmp_path_factory):
    """What was asked for, and the image."""
    candidate = tmp_path_factory.mktemp("judged") / "looping"
    evidence = {"candidate": write_torch_candidate(candidate)}
    try:
        lock = load_wheel_lock("wheels-torch-cp311-x86_64.txt")
        fetch_wheels(lock, store=ContentStore(bakery.request.downloads), say=print)
    except EnvironmentFault as fault:
        pytest.skip(f"pip has no index that offers PyTorch's CPU build: {fault.message}")
    spec = bakery.request.spec.model_copy(update={"runtime": "torch"})
    request = bakery.request_with(spec=spec, version="torch-full", candidate_folder=candidate, evidence=evidence)
    return request, build_image(request)


def _probe(torch_image, runtime, limits):
    request, built = torch_image
    asked = ProbeRequest(
        layout=request.layout, digest=built.digest, candidate_folder=request.candidate_folder, clock=SystemClock(),
        limits=limits,
    )  # fmt: skip
    return probe_image(asked, runtime=runtime)


def test_a_model_that_does_not_export_is_served_by_torch_as_it_was_judged(torch_image, tmp_path):
    found = _probe(torch_image, ProcessRuntime(tmp_path), QUICK)
    assert (found.verdict, found.reasons) == ("PASS", ())
    assert found.facts["golden_requests"] >= 5


def test_its_layers_are_complete_and_come_again(torch_image, tmp_path):
    request, built = torch_image
    assert build_image(request).digest == built.digest
    assert built.compressed_bytes < 300_000_000
    found = verify_image(request.layout, built.digest, osv_snapshot=tmp_path / "none", clock=SystemClock())
    assert {reason.code for reason in found.reasons} == {"vulnerabilities-unknown"}, found.reasons
    for name in ("torch", "safetensors", "onnxruntime"):
        assert f"pkg:pypi/{name}@".encode() in found.sbom


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_it_passes_the_whole_probe_locked_down_in(name, torch_image, tmp_path):
    runtime, program = RUNTIMES[name]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is missing")
    found = _probe(torch_image, runtime(tmp_path), ProbeLimits())
    assert (found.verdict, found.reasons) == ("PASS", ())
