"""Every project file is examined by its room's loader; a broken one is named with line and field."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlops.errors import ProjectError
from mlops.places import Places
from mlops.project.diagnosis import Diagnosis, Examination, count_problems
from mlops.project.file_examination import examine_files, require_product_files
from mlops.project.scaffold import import_scaffold, write_scaffold
from mlops.training.ray_cluster import connected

CASE = """\
version: 1
id: churn-1
title: told to leave
severity: 1
origin: ticket 7
expires: 2030-01-01
input: {months: 3, spend: 80.5, calls: 4, plan: basic}
relation: {kind: equals, answer: "no"}
neighbourhood: [{column: spend, up: 5, down: 5}]
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `mlops init` leaves it, committed."""
    root = tmp_path_factory.mktemp("pristine") / "churn"
    import_scaffold(write_scaffold(root, product="churn"))
    (root / "evaluation" / "incidents" / "churn-1.yaml").write_text(CASE, encoding="utf-8")
    commit(root)
    return root


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(pristine), str(tmp_path / "churn")], check=True)
    return tmp_path / "churn"


def commit(root: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "commit", "-q", "-m", "Start"], cwd=root, check=True)


def broken(root: Path) -> dict[str, Diagnosis]:
    return {found.subject: found for found in examine_files(Places(root)) if found.status == "broken"}


def test_a_new_project_is_fine(project: Path):
    found = examine_files(Places(project))
    assert [one for one in found if one.status != "fine"] == []
    subjects = {one.subject for one in found}
    written = {path.relative_to(project).as_posix() for path in project.rglob("*.yaml") if ".mlops" not in path.parts}
    assert {name for name in written if not name.startswith(("datasets/churn/", ".github/"))} <= subjects


SWEEP = "training/churn.yaml"
TRAINER = "training/churn.py"
POLICY = "evaluation/churn.yaml"
RECIPE = "datasets/churn.yaml"
TEAM = "budgets/team.yaml"
REMOTE = "['remote \"local\"']\n    url = ../.mlops/dvc-remote\n"
STAGING = "deploy/environments/staging.yaml"
BREAKAGES = {
    # what is done to which file: (file, old text, new text, where it is said, what is said)
    "an unknown field": (SWEEP, "trials: 4", "trials: 4\ntrails: 5", "training/churn.yaml:13: trails"),
    "a wrong type": (SWEEP, "epochs: 4", "epochs: many", "training/churn.yaml:13: epochs"),
    "YAML that is none": (SWEEP, "fixed:", "fixed: [", SWEEP),
    "a parameter that the trainer does not read": (SWEEP, "width:", "widht:", "did you mean 'width'"),
    "an unknown dataset": (SWEEP, "dataset: churn", "dataset: chrun", "unknown dataset 'chrun'"),
    "an unknown budget": (SWEEP, "budget: team", "budget: teem", "unknown budget 'teem'"),
    "a budget for erasures that is not there": (
        "deploy/erasure.yaml", "window: 1d", "budget: eraser\nwindow: 1d", "unknown budget 'eraser'"
    ),
    "another product's name": (SWEEP, "product: churn", "product: other", "named for 'churn'"),
    "a trainer that is not Python": (TRAINER, "def model(params):", "def model(params:", TRAINER),
    "a trainer without train": (TRAINER, "def train(worker", "def teach(worker", "def train(worker, params)"),
    "a threshold out of range": (POLICY, "minimum: 0.70", "minimum: 70", POLICY),
    "a threshold without reason": (
        POLICY,
        "    reason: A customer can round what they spend; few answers may hang on that.\n",
        "",
        "reason: is required",
    ),
    "a check of an unknown column": (POLICY, "by: [region]", "by: [nation]", "unknown column 'nation'"),
    "an unknown class": (POLICY, 'favourable_class: "no"', "favourable_class: never", "'never' is none"),
    "a dataset column of an unknown kind": (RECIPE, "kind: number", "kind: nummer", RECIPE),
    "splits that overlap": (RECIPE, "validation: [9, 11]", "validation: [8, 11]", RECIPE),
    "a parent budget that is not there": (TEAM, "parent: company", "parent: compny", "unknown budget"),
    "an amount without a currency": (TEAM, "cap: 200 USD", "cap: 200", "budgets/team.yaml:4: cap"),
    "a base image without digest": ("deploy/churn.yaml", "base: debian", "base: debian:12", "tags may change"),
    "torch served as ONNX": (SWEEP, "epochs: 4", "epochs: 4\nexport: torch", "write `runtime: torch` under `image:`"),
    "ONNX served as torch": (
        "deploy/churn.yaml", "image:", "image:\n  runtime: torch", "leave `runtime: torch` out"
    ),
    "a port out of range": (
        STAGING, "churn: 8721", "churn: 80", STAGING
    ),
    "a person with half a key": (
        "deploy/roles.yaml", "people: {}", "people: {ada: {keys: [ed25519:AA]}}", "deploy/roles.yaml:"
    ),
    "a lock line without a version": ("requirements.lock", "click==", "click>=", "requirements.lock:"),
    "an incident case without what should hold": (
        "evaluation/incidents/churn-1.yaml", "relation:", "relations:", "relation: is required"
    ),
    "a missing remote": (".dvc/config", REMOTE, "", "names no remote"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKAGES)
def test_is_found(case: str, project: Path):
    file, old, new, said = BREAKAGES[case]
    path = project / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = broken(project)
    everything = "\n".join([one.text + "\n".join(one.items) for one in found.values()])
    assert said in everything
    assert all(one.hint or one.items or "see" in one.text for one in found.values())


@pytest.mark.parametrize("name", ["mlops/__init__.py", "mlops.py"])
def test_a_package_of_the_project_called_as_ours_is_refused_before_anything_starts(name: str, project: Path):
    """Ray's workers would import it instead: they look into the project's folder first."""
    places = Places(project)
    (project / "mlops").mkdir()
    require_product_files(places, "churn")
    (project / name).touch()
    assert "rename mlops" in broken(project)["package"].hint
    with pytest.raises(ProjectError, match="the name of the installed package"):
        require_product_files(places, "churn")
    with pytest.raises(ProjectError, match="the name of the installed package"), connected(places):
        pass
    (project / "mlops" / "cli").mkdir()
    (project / "mlops" / "cli" / "start.py").touch()  # a clone of this repository
    require_product_files(places, "churn")


def test_a_release_says_every_broken_file_of_its_product_before_it_starts(project: Path):
    require_product_files(Places(project), "churn")
    for case in ("YAML that is none", "a threshold out of range", "an incident case without what should hold"):
        file, old, new, _ = BREAKAGES[case]
        path = project / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProjectError) as caught:
        require_product_files(Places(project), "churn")
    for file in (SWEEP, POLICY, "evaluation/incidents/churn-1.yaml"):
        assert any(file in item for item in caught.value.items), file


def test_five_problems_in_five_files_are_all_said(project: Path):
    for file, old, new, _ in list(BREAKAGES.values())[::5]:
        path = project / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    (project / "deploy" / "consumers" / "desk.yaml").write_text("version: 1\nservice: dask\n", encoding="utf-8")
    assert len(broken(project)) >= 5


REMOVED = {
    "training/churn.py": "training/churn.py",
    "evaluation/churn.yaml": "evaluation/churn.yaml",
    "deploy/churn.yaml": "deploy/churn.yaml",
    "datasets/churn.yaml": "training/churn.yaml",
    "budgets/rates.yaml": "budgets",
    "requirements.lock": "requirements.lock",
    ".dvc/config": ".dvc/config",
}


@pytest.mark.parametrize("file", REMOVED)
def test_a_missing_file_is_named(file: str, project: Path):
    (project / file).unlink()
    assert REMOVED[file] in broken(project)


def test_files_that_nothing_reads_are_named(project: Path):
    (project / "evaluation" / "chrun.yaml").write_text("version: 1\n", encoding="utf-8")
    (project / "training" / "churn.yml").write_text("version: 1\n", encoding="utf-8")
    found = broken(project)
    assert "is read by nothing" in found["evaluation/chrun.yaml"].text
    assert "the ending is .yaml" in found["training/churn.yml"].text


def test_no_repository_and_a_state_folder_that_git_would_take_are_said(project: Path):
    (project / ".gitignore").write_text("", encoding="utf-8")
    assert "add the line `.mlops/`" in broken(project)[".gitignore"].hint
    subprocess.run(["rm", "-rf", str(project / ".git")], check=True)
    assert "git" in broken(project)


def test_an_uncommitted_change_is_a_note_not_a_break(project: Path):
    (project / "README.md").write_text("mine", encoding="utf-8")
    (note,) = [one for one in examine_files(Places(project)) if one.status == "note"]
    assert note.items == ("README.md",)


def test_an_unpinned_dataset_says_what_to_run(project: Path):
    (project / "datasets.dvc").write_text("outs: []\n", encoding="utf-8")
    assert broken(project)["datasets/churn.yaml"].hint == "run `mlops dataset import churn`"


def test_problems_are_counted_once_each():
    one = Diagnosis("a", "broken", "2 problems", items=("x", "y"))
    assert count_problems([one, Diagnosis("b", "broken", "gone"), Diagnosis("c", "note", "odd", items=("z",))]) == 3
    assert Examination(machine=(), project=(Diagnosis("c", "note", "odd"),)).is_fine
    assert not Examination(machine=(one,), project=()).is_fine
