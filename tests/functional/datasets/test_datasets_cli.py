"""`mlops dataset …` as people type it."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from mlops.cli.main import mlops
from mlops.errors import DatasetError


@pytest.fixture
def run(people, monkeypatch):
    monkeypatch.chdir(people.places.root)

    def invoke(*arguments):
        return CliRunner().invoke(mlops, ["dataset", *arguments], catch_exceptions=True)

    return invoke


def test_import_list_show_verify_diff(run, people):
    dry = run("import", "people", "--dry-run")
    assert "would import datasets/people.csv" in dry.output
    assert people.places.datasets_dvc.read_text() == "outs: []\n"
    first = json.loads(run("import", "people", "--json").stdout)
    assert (sum(first["rows"].values()), first["is_unchanged"]) == (300, False)
    assert json.loads(run("import", "people", "--json").stdout)["is_unchanged"]
    assert "already there" in run("import", "people").output
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["dataset"], listed["digest"]) == ("people", first["digest"])
    shown = json.loads(run("show", "people", "--json").stdout)
    assert sum(shown["groups"]["region"]["north"].values()) + sum(shown["groups"]["region"]["south"].values()) == 300
    assert "rows by region" in run("show", "people").output
    assert run("verify", "people").exit_code == 0
    assert "same version" in run("diff", "people", first["dvc_digest"]).output


def test_verify_ends_with_1_and_names_the_file(run, people):
    run("import", "people")
    next((people.places.dataset_folder("people") / "train").iterdir()).unlink()
    done = run("verify", "people")
    assert done.exit_code == 1
    assert "is missing" in done.stderr


@pytest.mark.parametrize("command", ["import", "show", "verify"])
def test_an_unknown_dataset_is_said_with_what_to_do(run, command):
    done = run(command, "persons")
    assert isinstance(done.exception, DatasetError)
    assert "persons" in done.exception.message and done.exception.hint


def test_a_dataset_not_yet_imported_says_how_to(run):
    done = run("show", "people")
    assert done.exception.hint == "run `mlops dataset import people`"
    assert "not imported" in run("list").output


def test_versions_are_compared_by_git_revision_digest_and_directory(run, people, tmp_path):
    first = json.loads(run("import", "people", "--json").stdout)
    git = ["git", "-C", str(people.places.root), "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "datasets.dvc"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    people.rows[0]["region"] = "north" if people.rows[0]["region"] == "south" else "south"
    people.write()
    refused = run("import", "people")
    assert isinstance(refused.exception, DatasetError)
    run("import", "people", "--accept-changes")
    for revision in ("HEAD", first["digest"], first["dvc_digest"]):
        found = json.loads(run("diff", "people", revision, "--json").stdout)
        assert found["before"] == first["digest"] != found["after"]
        assert found["differences"][0] == "column region: has other values"
        assert found["drift"]["region"] > 0 == found["drift"]["age"]
    assert "drift region" in run("diff", "people", "HEAD", "--plot", str(tmp_path / "drift.svg")).output
    assert (tmp_path / "drift.svg").stat().st_size > 1000
    assert isinstance(run("diff", "people", "no-such-revision").exception, DatasetError)
    assert isinstance(run("diff", "people", "sha256:" + "0" * 64).exception, DatasetError)
