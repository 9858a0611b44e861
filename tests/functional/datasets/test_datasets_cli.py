"""`mlops dataset …` as people type it."""

import json
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from mlops.cli.main import mlops
from mlops.datasets.forgetting import find_holdings, forget_subjects, purge_shards
from mlops.datasets.subjects import hash_subject
from mlops.datasets.version import load_dataset_version
from mlops.errors import DatasetError, Refusal
from mlops.specs import parse_spec
from mlops.training.launch import launch_sweep, make_request
from mlops.training.spec import SweepSpec


@pytest.fixture
def run(people, monkeypatch):
    monkeypatch.chdir(people.places.root)

    def invoke(*arguments, input=None):
        return CliRunner().invoke(mlops, ["dataset", *arguments], input=input, catch_exceptions=True)

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


def write_more(people, name, rows):
    path = people.places.root / "datasets" / name
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_added_files_stand_in_the_recipe_and_move_only_the_shards_they_touch(run, people):
    before = json.loads(run("import", "people", "--json").stdout)
    old = {shard.relpath: shard.sha256 for shard in load_dataset_version(people.places, "people").manifest.shards}
    rows = [{**people.rows[0], "person": "somebody new", "age": "55"}]
    more = write_more(people, "more.csv", rows)
    assert "would add datasets/more.csv" in run("add", "people", more, "--dry-run").output
    added = json.loads(run("add", "people", more, "--json").stdout)
    assert sum(added["rows"].values()) == sum(before["rows"].values()) + 1
    new = {shard.relpath: shard.sha256 for shard in load_dataset_version(people.places, "people").manifest.shards}
    assert len([path for path in old if new[path] != old[path]]) == 1
    assert [file.path for file in people.load_recipe().source.files] == ["datasets/people.csv", "datasets/more.csv"]
    assert json.loads(run("import", "people", "--json").stdout)["is_unchanged"]


def test_what_cannot_be_added_changes_neither_recipe_nor_pin(run, people, tmp_path):
    run("import", "people")
    kept = [path.read_text() for path in (people.places.datasets_dvc, people.places.root / "datasets" / "people.yaml")]
    outside = tmp_path / "outside.csv"
    outside.write_text("person\n")
    broken = write_more(people, "broken.csv", [{**people.rows[0], "age": "-3"}])
    cases = {
        str(outside): "lies outside",
        "datasets/nobody.csv": "does not exist",
        "datasets/people.csv": "already part of people",
        broken: "not what the recipe allows",
    }
    for file, said in cases.items():
        done = run("add", "people", file)
        assert isinstance(done.exception, DatasetError), file
        assert said in " ".join([done.exception.message, *done.exception.items])
    assert kept == [
        path.read_text() for path in (people.places.datasets_dvc, people.places.root / "datasets" / "people.yaml")
    ]


def test_a_sweep_for_another_purpose_is_refused(run, people):
    run("import", "people")
    version = load_dataset_version(people.places, "people")
    spec = parse_spec(
        "{version: 1, product: p, dataset: people, budget: b, purpose: advertising, objective: {metric: loss}, "
        "space: {a: {choices: [1]}}, trials: 1, epochs: 1}",
        SweepSpec,
        source="p.yaml",
    )
    people.places.trainer_file("p").parent.mkdir(parents=True, exist_ok=True)
    people.places.trainer_file("p").write_text("")
    nothing = dict.fromkeys(("ledger", "clock", "ids", "leases", "mirror", "say"))  # refused before any is used
    request = make_request(people.places, spec, version=version, tags={}, spender="me")
    answer = launch_sweep(people.places, request, version=version, **nothing)
    assert isinstance(answer, Refusal)
    assert [reason.code for reason in answer.reasons] == ["purpose-not-allowed"]
    assert "model_training, not for advertising" in answer.reasons[0].text


@pytest.mark.parametrize(
    ("given", "said"),
    {
        "nobody is asked for": (b"\n", "one subject id"),
        "two people at once": (b"p1\np2\n", "one subject id"),
        "bytes that are no text": (b"\xff\xfe1\n", "not UTF-8"),
    }.values(),
)
def test_who_is_looked_for_must_be_one_readable_id(run, people, given, said):
    run("import", "people")
    done = run("find", "people", "--subject", input=given)
    assert done.exit_code and said in done.output + str(done.exception)


def test_the_mark_of_an_editor_does_not_make_somebody_else_of_a_person(run, people):
    run("import", "people")
    person = people.rows[0]["person"]
    plain = run("find", "people", "--subject", input=f"{person}\n".encode())
    assert "0 rows" not in plain.output
    assert run("find", "people", "--subject", input=f"\ufeff{person}\r\n".encode()).output == plain.output


@pytest.mark.parametrize("picture", ["nowhere/drift.svg", "drift.txt"])
def test_a_picture_that_cannot_be_written_is_said_before_the_work(run, picture):
    done = run("diff", "people", "HEAD", "--plot", picture)
    assert done.exit_code == 2 and picture in done.output


def test_a_remote_whose_package_is_missing_is_said(run, people):
    run("import", "people")
    people.rows.pop()
    people.write()
    config = people.places.root / ".dvc" / "config"
    kept = config.read_text().splitlines()
    config.write_text("\n".join("url = oss://bucket/x" if "url" in line else line for line in kept) + "\n")
    done = run("import", "people", "--accept-changes")
    assert isinstance(done.exception, DatasetError), done.exception
    assert "dvc-oss" in done.exception.message and done.exception.hint


def test_many_damaged_objects_do_not_flood_the_screen_and_what_mends_them_is_said(run, people):
    run("import", "people")
    shutil.rmtree(people.places.state / "dvc-remote")
    shutil.rmtree(people.places.dataset_folder("people"))
    done = run("verify", "people")
    shown = done.stderr.splitlines()
    assert done.exit_code == 1 and len(shown) < 25
    assert "more (--json names all)" in shown[-2] and "mlops dataset import people" in shown[-1]
    assert run("import", "people").exit_code == 0
    assert run("verify", "people").exit_code == 0


def test_versions_are_compared_also_after_people_left(run, people, tmp_path):
    first = json.loads(run("import", "people", "--json").stdout)["digest"]
    forgotten = [hash_subject(people.rows[0]["person"], key=b"test")]
    held = find_holdings(people.places, "people", forgotten[0])
    forget_subjects(people.places, "people", forgotten)
    purge_shards(people.places, "people", [holding.shard for holding in held])
    assert held
    compared = run("diff", "people", first)
    assert compared.exit_code == 0, compared.exception
    assert "rows became" in compared.output
    assert f"{len(held)} shards were purged" in compared.output
    assert isinstance(run("diff", "people", first, "--plot", str(tmp_path / "d.svg")).exception, DatasetError)
