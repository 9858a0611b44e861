"""The image with torch, built from the real lock, booted and tried out: 180 MB, so only in long runs."""

import shutil

import pytest

from mlops.clock import SystemClock
from mlops.deploy.runtime_podman import PodmanRuntime
from mlops.serving.image import build_image
from mlops.serving.inventory import take_inventory
from mlops.serving.probe import ProbeRequest, probe_image
from mlops.serving.runtime_process import ProcessRuntime
from mlops.serving.testing import write_torch_candidate
from mlops.serving.verification import verify_image


@pytest.mark.slow
@pytest.mark.system
def test_a_model_that_does_not_export_is_served_by_torch_as_it_was_judged(bakery, tmp_path):
    candidate = tmp_path / "looping"
    evidence = {"candidate": write_torch_candidate(candidate)}
    spec = bakery.request.spec.model_copy(update={"runtime": "torch"})
    request = bakery.request_with(spec=spec, version="torch-full", candidate_folder=candidate, evidence=evidence)
    built = build_image(request)
    assert build_image(request).digest == built.digest
    assert built.compressed_bytes < 300_000_000
    packages = {package.name for package in take_inventory(request.layout, built.digest).packages}
    assert {"torch", "safetensors", "onnxruntime"} <= packages
    found = verify_image(request.layout, built.digest, osv_snapshot=tmp_path / "none", clock=SystemClock())
    assert {reason.code for reason in found.reasons} == {"vulnerabilities-unknown"}, found.reasons
    runtimes = [ProcessRuntime(tmp_path / "process")]
    runtimes += [PodmanRuntime(tmp_path / "podman")] if shutil.which("podman") else []
    for runtime in runtimes:
        asked = ProbeRequest(
            layout=request.layout, digest=built.digest, candidate_folder=candidate, clock=SystemClock()
        )
        result = probe_image(asked, runtime=runtime)
        assert (result.verdict, result.reasons) == ("PASS", ()), runtime.name
