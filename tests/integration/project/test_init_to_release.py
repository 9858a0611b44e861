"""A new project, from `mlops init` to a probed serving image, and again with nothing changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


class NewProject:
    """A project made by `mlops init`, with the tree's store of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "churn"
        hidden = ("MLOPS_", "MLFLOW_", "RAY_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment["HOME"] = str(folder / "home")
        (folder / "home").mkdir()
        self.check("init", "churn", folder=folder)
        store = ROOT / ".mlops" / "store"
        store.mkdir(parents=True, exist_ok=True)  # content-addressed: sharing downloads shares no state
        (self.folder / ".mlops" / "store").symlink_to(store)

    def run(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlops.cli", *arguments],
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def check(self, *arguments: str, folder: Path | None = None) -> str:
        done = self.run(*arguments, folder=folder)
        assert done.returncode == 0, f"mlops {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def commit(self, subject: str) -> str:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", subject]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NewProject, str]]:
    """(project, what the release said)."""
    project = NewProject(tmp_path_factory.mktemp("new"))
    project.commit("Start")
    project.check("doctor")
    said = project.check("release", "churn")
    yield project, said
    project.run("stop")


def test_a_new_project_is_released(released: tuple[NewProject, str]):
    project, said = released
    assert "released churn@1" in said
    report = re.search(r"gate report\s+(\S+)", said)
    assert report is not None
    assert "PASS" in (project.folder / report[1]).read_text(encoding="utf-8")
    (version,) = json.loads(project.check("model", "list", "--json"))
    assert version["aliases"] == ["latest"]
    assert version["tags"]["mlops.dataset_name"] == "churn"
    project.check("model", "get", "churn@latest", "fetched")
    fetched = {path.name for path in (project.folder / "fetched").iterdir()}
    assert {"MLmodel", "model.onnx", "weights.safetensors", "contract.json", "load.py"} <= fetched
    subprocess.run(["rm", "-r", str(project.folder / "fetched")], check=True)


def test_again_with_nothing_changed_everything_is_reused(released: tuple[NewProject, str]):
    project, _ = released
    project.check("release", "churn")  # another test may have committed a new policy
    began = time.monotonic()
    done = json.loads(project.check("release", "churn", "--json"))
    assert all(step["is_reused"] for step in done["churn"].values()), done
    print(f"second release: {time.monotonic() - began:.1f} s")
    assert len(json.loads(project.check("model", "list", "--json"))) == 1


def test_only_what_a_push_changed_is_baked(released: tuple[NewProject, str]):
    project, _ = released
    base = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project.folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    (project.folder / "README.md").write_text("# Changed\n", encoding="utf-8")
    readme = project.commit("Change the README")
    done = project.run("release", "--changed", f"{base}..{readme}", "--dry-run")
    assert (done.returncode, "no product" in done.stderr) == (0, True)
    policy = project.folder / "evaluation" / "churn.yaml"
    policy.write_text(policy.read_text(encoding="utf-8").replace("minimum: 0.70", "minimum: 0.71"), encoding="utf-8")
    head = project.commit("Ask for more")
    done = project.run("release", "--changed", f"{readme}..{head}", "--dry-run")
    assert done.returncode == 0
    assert "churn" in done.stderr
    assert "would run: gate" in done.stdout


def test_the_command_of_the_workflow_works_as_written(released: tuple[NewProject, str]):
    """The Makefile's `release-changed`, on a first push whose `before` is all zeros."""
    project, _ = released
    dry = subprocess.run(
        ["make", "-n", "release-changed", f"BASE={'0' * 40}", "HEAD=HEAD", "-o", ".venv/.ready", "-o", "setup"],
        cwd=project.folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    line = next(line for line in dry.splitlines() if "--changed" in line).strip()
    shown = subprocess.run(
        ["bash", "-c", line.replace(".venv/bin/mlops release", "echo")],
        cwd=project.folder,
        capture_output=True,
        text=True,
    ).stdout
    assert re.fullmatch(r"--changed [0-9a-f]{40}\.\.HEAD\n", shown)


REQUEST = {"months": 3, "spend": 80.5, "calls": 4, "plan": "basic"}


def test_a_wrong_answer_becomes_a_case_that_stops_the_next_release(released: tuple[NewProject, str]):
    project, _ = released
    project.check("release", "churn")  # another test may have committed a new policy
    report = ["incident", "open", "churn@latest", "--severity", "1", "--title", "Told to leave", "--reason", "ticket 7"]
    (project.folder / "request.json").write_text(json.dumps({"instances": [REQUEST]}), encoding="utf-8")

    def open_(*arguments: str) -> subprocess.CompletedProcess[str]:
        with (project.folder / "request.json").open("rb") as body:
            command = [sys.executable, "-m", "mlops.cli", *report, *arguments]
            return subprocess.run(
                command,
                cwd=project.folder,
                env=project.environment,
                stdin=body,
                capture_output=True,
                text=True,
                timeout=280,
            )

    answers = {word: open_("--expect", f"equals {word}", "--dry-run") for word in ("yes", "no")}
    right = next(word for word, done in answers.items() if "answers-as-expected" in done.stderr)
    wrong = "no" if right == "yes" else "yes"
    assert answers[wrong].returncode == 0, answers[wrong].stderr
    assert "would open" in answers[wrong].stdout
    assert project.check("incident", "list") == "no open incident\n"

    opened = json.loads(open_("--expect", f"equals {wrong}", "--json").stdout)
    again = json.loads(open_("--expect", f"equals {wrong}", "--json").stdout)
    assert opened["incident"]["incident_id"] == again["incident"]["incident_id"]
    assert (opened["is_new"], again["is_new"]) == (True, False)
    assert opened["case"]["input"] != REQUEST
    assert 1 in [version["number"] for version in opened["affected"]["versions"]]
    assert opened["retrain"]["reused"] == ["data", "sweep", "export"]
    assert "gate" in opened["retrain"]["to_run"]
    case = project.folder / opened["incident"]["case_path"]
    assert case.is_file()

    (project.folder / "request.json").unlink()
    project.commit("Keep the incident")
    stopped = project.run("release", "churn")
    assert stopped.returncode == 1, stopped.stdout
    assert opened["incident"]["incident_id"] in stopped.stderr
    closing = project.run("incident", "close", opened["incident"]["incident_id"])
    assert (closing.returncode, "nothing-serves" in closing.stderr) == (1, True)
    case.unlink()
    project.commit("Let it go, so that other tests may release")
