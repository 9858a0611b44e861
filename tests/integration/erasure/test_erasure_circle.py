"""The whole circle for real: a person with a unique row, a served model, a request, a clean model, and nothing left.

Real Ray, MLflow, DVC remote, git, image, runtime and HAProxy, in a project made by `mlops init`.
"""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mlops.datasets.subjects import hash_subject
from mlops.erasure.scanning import Needles, scan_project
from mlops.project.opening import open_project
from mlops.provenance.keys import MACHINE, load_key

ROOT = Path(__file__).parents[3]
PERSON, SPEND = "c-unique-person", "481.62"
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1_500),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]


class Circle:
    """One project and its command line."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "churn"
        hidden = ("MLOPS_", "MLFLOW_", "RAY_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment |= {"HOME": str(folder / "home"), "ORT_DISABLE_TELEMETRY": "1"}
        (folder / "home").mkdir()
        self.check("init", "churn", folder=folder)
        store = ROOT / ".mlops" / "store"
        store.mkdir(parents=True, exist_ok=True)
        (self.root / ".mlops" / "store").symlink_to(store)

    def run(self, *arguments, stdin="", folder=None):
        return subprocess.run(
            [sys.executable, "-m", "mlops.cli", *arguments], cwd=folder or self.root, env=self.environment,
            input=stdin, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip

    def check(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"mlops {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def git(self, *arguments):
        identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True, capture_output=True).stdout

    def scan(self):
        """Stores that hold something of the person."""
        project = open_project(self.root)
        needles = Needles(frozenset({hash_subject(PERSON, key=b"churn-example")}), frozenset({SPEND, PERSON}))
        return {it.store for it in scan_project(project, needles) if it.is_match}

    def ask_served(self):
        """The versions that the proxy's port answers for."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/models/churn", timeout=30) as answer:
            return json.load(answer)["versions"]


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    it = Circle(tmp_path_factory.mktemp("circle"))
    with (it.root / "datasets" / "churn.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow([PERSON, 33, SPEND, 3, "pro", "north", "no"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        it.port = probe.getsockname()[1]
    rules = it.root / "deploy" / "environments" / "staging.yaml"
    rules.write_text(rules.read_text().replace("8721", str(it.port)))
    sweep = it.root / "training" / "churn.yaml"
    sweep.write_text(sweep.read_text().replace("trials: 4", "trials: 2").replace("groups: 2", "groups: 1"))
    with (it.root / ".gitignore").open("a") as stream:
        stream.write("/datasets/churn.csv\n")  # rows of real people do not belong into git's history
    it.check("dataset", "import", "churn", "--accept-changes")
    it.git("init", "-q")
    it.git("add", "-A")
    it.git("commit", "-q", "-m", "Start")
    it.check("release", "churn")
    it.check("promote", "churn@1", "--to", "staging")
    it.check("deploy", "reconcile", "staging")
    yield it
    it.run("deploy", "stop")
    it.run("stop")


def test_a_person_is_forgotten_from_data_to_serving_and_nothing_is_left(circle, tmp_path):
    assert circle.scan() >= {"dvc-cache", "dvc-remote", "datasets"}, "the scan finds the person while they are there"
    assert circle.ask_served() == ["1"]
    said = circle.check("erasure", "request", "churn", stdin=f"{PERSON}\n")
    assert PERSON not in said
    refused = circle.run("promote", "churn@1", "--to", "staging", "--dry-run")
    assert "fenced" in refused.stdout + refused.stderr
    said = circle.check("erasure", "run", "churn")
    assert "epochs on" not in said, "the trainer was checked before the release"
    assert circle.ask_served() == ["2"]
    assert circle.scan() == set()
    rollback = circle.run("rollback", "staging", "--to", "1")
    assert rollback.returncode == 1
    assert "erased" in rollback.stderr
    assert "purged under certificate 1" in circle.check("audit", "verify", "churn@1", "--long")
    check_certificate(circle, tmp_path)
    assert PERSON.encode() not in circle.git("log", "-p", "--all")


def check_certificate(circle, elsewhere):
    """With the file and the key alone, where there is no project."""
    key = load_key(circle.root / ".mlops" / "keys", MACHINE).public
    certificate = Path(shutil.copy(circle.root / ".mlops" / "certificates" / "000001.json", elsewhere))
    verify = ("erasure", "certificate", "verify", str(certificate), "--key", key)
    said = circle.check(*verify, folder=elsewhere)
    assert "churn@1 -> 2" in said
    assert "[ ]" not in said
    certificate.write_text(certificate.read_text().replace("a", "b", 1))
    assert circle.run(*verify, folder=elsewhere).returncode != 0
