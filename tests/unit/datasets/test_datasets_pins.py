import pytest
import yaml

from mlops.datasets.pins import Pin, load_pins, parse_directory, parse_pins, render_directory, write_pin
from mlops.errors import DatasetError

PIN = Pin(
    path="datasets/people",
    dvc_digest="0" * 32 + ".dir",
    bytes=10,
    files=3,
    manifest="sha256:" + "1" * 64,
    rows=5,
    schema="cd",
    writer="w",
    columns={"age": "ab"},
)


def test_a_pin_comes_back_and_other_outs_stay_as_they_are(tmp_path):
    path = tmp_path / "datasets.dvc"
    foreign = {"md5": "a" * 32, "path": "models/x", "desc": "not ours"}
    path.write_text(yaml.safe_dump({"outs": [foreign]}))
    write_pin(path, PIN)
    write_pin(path, PIN)
    assert load_pins(path) == {"people": PIN}
    assert foreign in yaml.safe_load(path.read_text())["outs"]
    assert len(yaml.safe_load(path.read_text())["outs"]) == 2


def test_no_file_pins_nothing(tmp_path):
    assert load_pins(tmp_path / "datasets.dvc") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("outs: [1, 2]", "not a DVC file"),
        ("a: [", "not a DVC file"),
        ("- 1", "not a DVC file"),
        ("outs: [{path: datasets/people, md5: abc}]", "not the digest of a directory"),
    ],
)
def test_a_broken_file_is_refused(text, words):
    with pytest.raises(DatasetError, match=words):
        parse_pins(text, source="datasets.dvc")


def test_a_directory_comes_back():
    members = {"b": "1" * 32, "a/c": "2" * 32}
    assert parse_directory(render_directory(members), source="x") == members


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"nonsense",
        b'[{"md5": "0", "relpath": "../x"}]',
        b'[{"md5": "0"}]',
        b'[{"md5":"0","relpath":"/x"}]',
    ],
)
def test_an_empty_or_climbing_directory_is_never_a_dataset(content):
    with pytest.raises(DatasetError):
        parse_directory(content, source="x.dir")
