"""What `mlops init` writes, and that a failure leaves nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mlops.errors import ProjectError
from mlops.project.scaffold import (
    generate_rows,
    import_scaffold,
    plan_scaffold,
    remove_scaffold,
    render_lock,
    write_scaffold,
)
from mlops.training.source_check import check_source
from mlops.training.trainer import read_trainer


def test_every_room_of_the_layout_is_there(tmp_path: Path):
    files = plan_scaffold(tmp_path, product="churn")
    expected = {
        "datasets.dvc", "datasets/churn.yaml", "datasets/churn.csv", ".dvc/config", "training/churn.py",
        "training/churn.yaml", "evaluation/churn.yaml", "budgets/company.yaml", "budgets/team.yaml",
        "budgets/rates.yaml",
        "deploy/churn.yaml", "deploy/roles.yaml", "deploy/environments/staging.yaml",
        "deploy/environments/production.yaml", "requirements.lock", ".gitignore", "Makefile", "README.md",
        ".github/workflows/release.yml",
    }  # fmt: skip
    assert expected <= set(files)
    assert not [name for name, text in files.items() if "__PRODUCT__" in name + text]
    assert not [name for name in files if name.endswith(".template") or Path(name).stem == "product"]


def test_the_workflow_bakes_what_a_push_changed(tmp_path: Path):
    files = plan_scaffold(tmp_path, product="churn")
    workflow = yaml.safe_load(files[".github/workflows/release.yml"])
    steps = workflow["jobs"]["release"]["steps"]
    assert any("release-changed" in step.get("run", "") for step in steps)
    assert "mlops release --changed" in files["Makefile"]
    assert workflow["permissions"] == {"contents": "read"}
    # what comes from the event goes through the environment, never into the script's text
    assert not [step for step in steps if "${{ github.event" in step.get("run", "")]


def test_the_workflow_keeps_private_keys_out_of_its_cache_and_writes_its_own_for_itself_alone(tmp_path: Path):
    workflow = yaml.safe_load(plan_scaffold(tmp_path, product="churn")[".github/workflows/release.yml"])
    steps = workflow["jobs"]["release"]["steps"]
    (cache,) = (step["with"]["path"].split() for step in steps if step.get("uses", "").startswith("actions/cache"))
    assert cache == [".mlops/*", "!.mlops/keys"]
    (sign,) = (step["run"] for step in steps if "KEY" in step.get("env", {}))
    key = tmp_path / ".mlops" / "keys" / "machine.pem"
    for text in ("", "a\nb"):
        subprocess.run(["bash", "-e", "-c", sign], cwd=tmp_path, env={**os.environ, "KEY": text}, check=True)
        assert key.exists() == bool(text)
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("a\nb\n", 0o600)


def call_make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "MLOPS"}
    return subprocess.run(["make", *arguments], cwd=root, env=clean, capture_output=True, text=True, check=False)


def test_a_first_push_releases_what_its_only_commit_holds(tmp_path: Path):
    (tmp_path / "Makefile").write_text(plan_scaffold(tmp_path, product="churn")["Makefile"], encoding="utf-8")
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "mlops").symlink_to("/bin/echo")
    (tmp_path / ".venv" / ".ready").touch()
    told = call_make(tmp_path, "-s", "release-changed", f"BASE={'0' * 40}", "HEAD=abc")
    assert (told.stdout, told.returncode) == (f"release --changed {'0' * 40}..abc\n", 0)


def test_without_a_word_on_where_mlops_comes_from_nothing_is_installed(tmp_path: Path):
    """The bare name is another project on PyPI."""
    files = plan_scaffold(tmp_path, product="churn")
    (tmp_path / "Makefile").write_text(files["Makefile"], encoding="utf-8")
    (tmp_path / "requirements.lock").touch()
    told = call_make(tmp_path, "setup")
    assert told.returncode != 0
    assert "say where mlops comes from" in told.stderr
    assert not (tmp_path / ".venv").exists()
    assert (
        yaml.safe_load(files[".github/workflows/release.yml"])["jobs"]["release"]["env"]["MLOPS"] == "${{ vars.MLOPS }}"
    )


def test_the_trainer_is_short_plain_and_without_findings(tmp_path: Path):
    scaffold = write_scaffold(tmp_path / "new", product="churn")
    trainer = scaffold.root / "training" / "churn.py"
    text = trainer.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    imported = {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"torch"}
    assert read_trainer(trainer).known == {"width", "learning_rate", "batch_size"}
    from mlops.places import Places

    assert check_source(Places(scaffold.root), product="churn").findings == ()


def test_generated_rows_are_the_same_for_a_seed_and_unrelated_to_the_region():
    rows = [line.split(",") for line in generate_rows(seed=1).splitlines()[1:]]
    assert rows == [line.split(",") for line in generate_rows(seed=1).splitlines()[1:]]
    assert rows != [line.split(",") for line in generate_rows(seed=2).splitlines()[1:]]
    leaves = Counter((row[5], row[6]) for row in rows)
    rates = [leaves[region, "yes"] / (leaves[region, "yes"] + leaves[region, "no"]) for region in ("north", "south")]
    assert abs(rates[0] - rates[1]) < 0.05
    assert len({row[0] for row in rows}) == len(rows)


def test_the_lock_holds_exact_versions_without_links_or_local_tags():
    lines = [line for line in render_lock().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line) for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert {"torch", "ray", "mlflow", "dvc", "click", "sqlalchemy"} <= names
    assert not {"mlops", "pytest", "mypy"} & names


@pytest.mark.parametrize("name", ["", "Churn", "1st", "a-b", "a b", "../x", "rates", "environments", "x" * 40, "ünï"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_written(name: str, tmp_path: Path):
    with pytest.raises(ProjectError, match="cannot be a product's name"):
        write_scaffold(tmp_path / "new", product=name)
    assert not (tmp_path / "new").exists()


def test_files_of_the_user_are_never_overwritten(tmp_path: Path):
    (tmp_path / "Makefile").write_text("mine", encoding="utf-8")
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(ProjectError) as caught:
        write_scaffold(tmp_path, product="churn")
    assert set(caught.value.items) == {"Makefile", "README.md"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "README.md"]


def test_a_project_inside_a_project_is_refused(tmp_path: Path):
    write_scaffold(tmp_path / "outer", product="outer")
    with pytest.raises(ProjectError, match="inside the project"):
        write_scaffold(tmp_path / "outer" / "inner", product="inner")
    with pytest.raises(ProjectError, match="is a file"):
        write_scaffold(tmp_path / "outer" / "Makefile", product="inner")


def test_other_files_beside_it_stay_and_taking_back_removes_only_its_own(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "old.txt").write_text("mine", encoding="utf-8")
    scaffold = write_scaffold(tmp_path, product="churn")
    import_scaffold(scaffold)
    assert (tmp_path / "datasets" / "churn" / "manifest.json").is_file()
    remove_scaffold(scaffold)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["notes.txt", "training/old.txt"]
    assert not (tmp_path / "deploy").exists()
