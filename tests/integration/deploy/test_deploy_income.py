"""The whole circle on the reference product, as people type it: real release, runtime, proxy, git."""

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request

import pytest
from deploy_fakes import free_port

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
    pytest.mark.skipif(not (shutil.which("podman") or shutil.which("bwrap")), reason="no OCI runtime is installed"),
]
ROW = {
    "age": 39, "workclass": "State-gov", "education": "Bachelors", "marital_status": "Never-married",
    "occupation": "Adm-clerical", "relationship": "Not-in-family", "capital_gain": 2174, "capital_loss": 0,
    "hours_per_week": 40, "native_country": "United-States",
}  # fmt: skip


def request_body():
    return json.dumps({
        "inputs": [
            {"name": name, "shape": [1], "datatype": "BYTES" if isinstance(value, str) else "FP32", "data": [value]}
            for name, value in ROW.items()
        ]
    }).encode()  # fmt: skip


class Caller:
    """A consumer that asks all the time."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/v2/models/income/infer"
        self.answers, self.failures = 0, []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()

    def _run(self):
        while not self._ending.is_set():
            try:
                ask(self.url)
                self.answers += 1
            except (OSError, urllib.error.HTTPError) as error:
                self.failures.append(repr(error))


def ask(url):
    request = urllib.request.Request(url, data=request_body(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        outputs = {entry["name"]: entry["data"] for entry in json.loads(response.read())["outputs"]}
        assert len(outputs["probabilities"]) == 2
        return response.headers["x-model-digest"]


def status(clone):
    (entry,) = json.loads(clone.check("deploy", "status", "production", "--json"))
    return entry["products"][0] if entry["products"] else None


def rewrite(clone, path, pattern, text):
    file = clone.folder / path
    changed = re.sub(pattern, text, file.read_text())
    assert changed != file.read_text(), pattern
    file.write_text(changed)
    clone.git("commit", "-q", "-am", f"Change {path}")


def approve(clone, *people):
    for person in people:
        clone.check("approve", "income@latest", "--env", "production", "--key", person, "--reason", "report read")


def test_income_goes_round_the_circle(income_clone):
    clone = income_clone
    port = free_port()
    rewrite(clone, "deploy/environments/production.yaml", r"income: \d+", f"income: {port}")
    rewrite(clone, "deploy/environments/production.yaml", r"step_wait: \S+", "step_wait: 0.2s")
    for person in ("ada", "bob"):
        clone.check("keys", "init", "--person", person, "--email", f"{person}@example.org")
    clone.git("commit", "-q", "-am", "People")
    try:
        go_round(clone, port)
    finally:
        clone.run("deploy", "stop", "production")


def go_round(clone, port):
    refused = clone.run("promote", "income@latest", "--to", "production")
    assert refused.returncode == 1
    assert "0 of 2 approvals" in refused.stderr
    approve(clone, "ada", "bob")
    assert "2 of 2 approvals" in clone.check("promote", "income@latest", "--to", "production", "--dry-run")
    clone.check("promote", "income@latest", "--to", "production")
    clone.check("deploy", "reconcile", "production")
    first = status(clone)
    assert (first["is_converged"], first["healthy_instances"]) == (True, 1)

    # a second image of the same judged model, then a promotion under load
    rewrite(
        clone, "deploy/income.yaml", r"  compression: zstd", "  compression: zstd\n  environment: {LOG_LEVEL: warning}"
    )
    clone.check("release", "income", timeout=1200)
    approve(clone, "ada", "bob")
    with Caller(port) as caller:
        clone.check("promote", "income@latest", "--to", "production")
        clone.check("deploy", "reconcile", "production")
        time.sleep(0.5)
    assert caller.failures == []
    assert caller.answers > 10
    second = status(clone)
    assert second["serving"][0]["image"] != first["serving"][0]["image"]
    assert second["is_warm"]

    # planted: production no longer gives a new version time to start, so it goes back by itself
    rewrite(clone, "deploy/environments/production.yaml", r"start_within: \S+", "start_within: 0.01s")
    rewrite(clone, "deploy/income.yaml", r"LOG_LEVEL: warning", "LOG_LEVEL: error")
    clone.check("release", "income", timeout=1200)
    approve(clone, "ada", "bob")
    with Caller(port) as caller:
        clone.check("promote", "income@latest", "--to", "production")
        failed = clone.run("deploy", "reconcile", "production")
    assert (failed.returncode, caller.failures) == (1, [])
    assert "not ready within" in failed.stderr
    returned = status(clone)
    assert returned["serving"][0]["image"] == second["serving"][0]["image"]
    assert "not ready within" in returned["last_failure"]

    # back to the last known good, by hand
    rewrite(clone, "deploy/environments/production.yaml", r"start_within: \S+", "start_within: 30s")
    with Caller(port) as caller:
        told = json.loads(clone.check("rollback", "production", "--json"))
    assert caller.failures == []
    assert told["was_warm"]
    assert status(clone)["serving"][0]["image"] == first["serving"][0]["image"] == told["image"]

    # traced and verified, to the signed commit
    assert "dataset-import" in clone.check("trace", "production")
    clone.check("audit", "verify", "production")
    log = clone.git("log", "-1", "--format=%an%n%B", "--", "deploy/desired/production.yaml")
    assert log.startswith("mlops\nRollback in production")
    for kind in ("plain", "kserve"):
        assert first["serving"][0]["image"] in clone.check("deploy", "render", "production", "--kind", kind)


def test_every_acting_command_can_be_tried(income_clone):
    for arguments in (
        ("deploy", "reconcile", "staging", "--dry-run"),
        ("deploy", "stop", "staging", "--dry-run"),
        ("deploy", "status"),
    ):
        income_clone.check(*arguments)
    before = income_clone.git("rev-parse", "HEAD")
    income_clone.check("promote", "income@latest", "--to", "staging", "--dry-run")
    assert income_clone.git("rev-parse", "HEAD") == before
    missing = income_clone.run("promote", "income@latest", "--to", "qa")
    assert missing.returncode == 2
    assert "unknown environment 'qa'" in missing.stderr
