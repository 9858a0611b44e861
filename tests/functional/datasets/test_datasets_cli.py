"""`mlops dataset …` as people type it."""

import json

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
