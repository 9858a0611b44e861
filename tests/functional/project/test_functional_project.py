"""`mlops init`, `doctor` and `model` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MLOPS_", "MLFLOW_"))}


def mlops(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlops.cli", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project made by `mlops init`, committed."""
    folder = tmp_path_factory.mktemp("functional")
    done = mlops(folder, "init", "churn", HOME=str(folder))
    assert done.returncode == 0, done.stderr
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "Start"]):
        subprocess.run(["git", *command], cwd=folder / "churn", check=True)
    return folder / "churn"


def test_init_says_what_comes_next_and_writes_nothing_outside_the_folder(tmp_path: Path):
    done = mlops(tmp_path, "init", "churn", HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stdout.splitlines()][-5:] == [
        "cd churn", "git init", "git add . && git commit -m 'Start'", "mlops doctor", "mlops release churn"
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["churn"]


def test_init_dry_run_writes_nothing(tmp_path: Path):
    done = mlops(tmp_path, "init", "churn", "--dry-run", "--json")
    assert "training/churn.py" in json.loads(done.stdout)["files"]
    assert list(tmp_path.iterdir()) == []


def test_init_again_is_refused_with_the_files(project: Path):
    done = mlops(project.parent, "init", "churn")
    assert done.returncode == 2
    assert "  - training/churn.py" in done.stderr
    assert "nothing was written" in done.stderr


def test_a_bad_name_is_one_sentence(tmp_path: Path):
    done = mlops(tmp_path, "init", "Bad Name!")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'bad name!' cannot be a product's name")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_accepts_a_new_project(project: Path):
    done = mlops(project, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything a release needs is here" in done.stdout


def test_doctor_names_every_problem_of_a_broken_project_and_exits_1(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(project), str(copy)], check=True)
    sweep = copy / "training" / "churn.yaml"
    sweep.write_text(sweep.read_text(encoding="utf-8").replace("trials: 4", "trials: -1\nepoch: 2"), encoding="utf-8")
    (copy / "evaluation" / "churn.yaml").unlink()
    done = mlops(copy, "doctor", "--quiet")
    assert done.returncode == 1
    assert "training/churn.yaml:12: trials: " in done.stdout
    assert "training/churn.yaml:13: epoch: unknown field" in done.stdout
    assert "evaluation/churn.yaml does not exist" in done.stdout
    found = json.loads(mlops(copy, "doctor", "--json").stdout)
    assert found["is_fine"] is False
    subjects = {one["subject"] for one in found["project"] if one["status"] == "broken"}
    assert {"training/churn.yaml", "evaluation/churn.yaml"} <= subjects


def test_doctor_outside_of_a_project_examines_the_machine_and_says_so(tmp_path: Path):
    done = mlops(tmp_path, "doctor")
    assert done.returncode == 1
    assert "is not inside a project" in done.stdout
    assert "Python" in done.stdout


def test_doctor_processes_lists_nobody_in_a_quiet_project(project: Path):
    done = mlops(project, "doctor", "--processes")
    assert (done.returncode, done.stdout) == (0, "no process works in this project\n")


def test_model_commands_before_the_first_release(project: Path):
    listed = mlops(project, "model", "list")
    assert (listed.returncode, listed.stdout) == (0, "no version yet: `mlops release PRODUCT` makes one\n")
    assert json.loads(mlops(project, "model", "list", "--json").stdout) == []
    for reference, said in {"churn@1": "there is no churn@1", "churn": "is not of the form PRODUCT@VERSION"}.items():
        done = mlops(project, "model", "show", reference)
        assert done.returncode == 2
        assert said in done.stderr


def test_release_of_an_unknown_product_names_the_known_ones(project: Path):
    done = mlops(project, "release", "chrun")
    assert done.returncode == 2
    assert "unknown product 'chrun'" in done.stderr
    assert "known products: churn" in done.stderr


def test_release_of_a_dirty_tree_is_refused_with_the_files(project: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(project), str(copy)], check=True)
    (copy / "training" / "churn.py").write_text(
        "# changed\n" + (copy / "training" / "churn.py").read_text("utf-8"), "utf-8"
    )
    done = mlops(copy, "release", "churn")
    assert done.returncode == 1
    assert "dirty-tree" in done.stderr
    assert "training/churn.py" in done.stderr
