"""`mlops erasure …` as a privacy officer types it, with what goes wrong there."""

import json

import pytest
from click.testing import CliRunner

from mlops.cli.main import mlops
from mlops.errors import DatasetError, MlopsError, ProjectError


@pytest.fixture
def run(people, monkeypatch):
    monkeypatch.chdir(people.write().places.root)

    def invoke(*arguments, input=None):
        return CliRunner().invoke(mlops, ["erasure", *arguments], input=input, catch_exceptions=True)

    return invoke


def test_a_person_is_the_same_whatever_editor_wrote_the_file(run):
    for text in ("person-1\n", "\ufeffperson-1\r\n", "\n  person-1  \n\n"):
        assert run("request", "people", input=text.encode()).exit_code == 0
    assert len(json.loads(run("list", "people", "--json").output)) == 1


def test_an_id_that_cannot_be_read_is_refused_and_not_shown(run):
    done = run("request", "people", input=b"person-1\n\xe9lodie\n")
    assert isinstance(done.exception, ProjectError) and "line 2" in done.exception.message
    assert "lodie" not in done.exception.message + done.output
    assert "no open request" in run("list").output


def test_a_dataset_typed_wrong_does_not_look_like_one_without_requests(run):
    assert "no open request" in run("list", "people").output
    assert isinstance(run("list", "persons").exception, DatasetError)


def test_a_file_that_is_no_certificate_is_said_to_be_none(run, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xd0\x00")
    done = run("certificate", "verify", str(tmp_path / "picture.png"), "--key", "ed25519:" + "A" * 43 + "=")
    assert isinstance(done.exception, MlopsError), done.exception


def test_who_checks_a_certificate_at_home_is_asked_for_the_key(run, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    (tmp_path / "home" / "certificate.json").write_text("{}")
    done = run("certificate", "verify", "certificate.json")
    assert isinstance(done.exception, ProjectError) and "--key" in done.exception.hint
