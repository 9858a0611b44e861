"""What we rely on in DVC: its formats, its object layout and the calls of the one door that are not public API."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlops.datasets.dvc_store import DvcStore, Removal
from mlops.datasets.locations import load_locations, prepare_dvc_files
from mlops.datasets.objects import object_path
from mlops.datasets.pins import Pin, load_pins, render_directory, write_pin
from mlops.errors import DatasetError
from mlops.places import Places

CONTENTS = {"a.parquet": b"alpha", "train/b.parquet": b"beta", "ünï.json": b"{}"}


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path / "project")
    places.root.mkdir()
    prepare_dvc_files(places)
    return places


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def members():
    return {path: md5(content) for path, content in CONTENTS.items()}


def directory_digest():
    return md5(render_directory(members())) + ".dir"


def add_all(places) -> DvcStore:
    folder = places.root / "aside"
    files = {}
    for path, content in {**CONTENTS, "directory": render_directory(members())}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        files[directory_digest() if path == "directory" else md5(content)] = folder / path
    store = DvcStore(places)
    store.add(files)
    return store


def dvc(places, *arguments) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "HOME": str(places.root)}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=places.root, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_our_directory_object_is_the_one_dvc_makes():
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for path, digest in members().items():
        tree.add(tuple(path.split("/")), None, HashInfo("md5", digest))
    tree.digest()
    assert tree.oid == directory_digest()
    assert tree.as_bytes() == render_directory(members())


def test_objects_lie_where_readers_look(places):
    store = add_all(places)
    store.push(list(members().values()), directory=directory_digest())
    for url in load_locations(places).object_urls:
        for oid in [*members().values(), directory_digest()]:
            assert Path(object_path(url, oid)).is_file()


def test_dvc_itself_pulls_what_we_wrote_and_pinned(places):
    store = add_all(places)
    store.push(list(members().values()), directory=directory_digest())
    size = sum(map(len, CONTENTS.values()))
    write_pin(
        places.datasets_dvc,
        Pin("datasets/people", directory_digest(), size, 3, "sha256:" + "0" * 64, columns={"a": "b"}),
    )
    write_pin(places.datasets_dvc, Pin("datasets/twins", directory_digest(), size, 3, "sha256:" + "0" * 64))
    subprocess.run(["git", "init", "-q", str(places.root)], check=True)
    import shutil

    shutil.rmtree(places.state / "dvc-cache")
    dvc(places, "pull")
    for name in ("people", "twins"):
        for path, content in CONTENTS.items():
            assert (places.dataset_folder(name) / path).read_bytes() == content
    assert "up to date" in dvc(places, "status")
    dvc(places, "add", "datasets/people/a.parquet")
    assert load_pins(places.datasets_dvc)["people"].dvc_digest == directory_digest()
    assert {out["path"] for out in yaml.safe_load(places.datasets_dvc.read_text())["outs"]} == {
        "datasets/people",
        "datasets/twins",
    }


def test_a_push_with_a_missing_member_is_an_error(places):
    store = add_all(places)
    Path(store.cache.oid_to_path(members()["a.parquet"])).unlink()
    with pytest.raises(DatasetError, match="cannot write"):
        store.push(list(members().values()), directory=directory_digest())
    assert not store.remotes["local"].exists(directory_digest())


def test_a_half_uploaded_object_is_sent_again(places):
    store = add_all(places)
    oid = members()["a.parquet"]
    half = Path(store.remotes["local"].oid_to_path(oid))
    half.parent.mkdir(parents=True)
    half.write_bytes(b"al")
    store.push(list(members().values()), directory=directory_digest())
    assert half.read_bytes() == b"alpha"


def test_a_remote_that_is_a_file_is_said(places):
    places.dvc_remote.parent.mkdir(parents=True, exist_ok=True)
    places.dvc_remote.write_text("in the way")
    store = add_all(places)
    with pytest.raises(DatasetError, match="remote local"):
        store.push(list(members().values()), directory=directory_digest())


def test_one_object_is_removed_from_everywhere_and_the_rest_stays(places):
    store = add_all(places)
    store.push(list(members().values()), directory=directory_digest())
    oid = members()["a.parquet"]
    assert store.delete(oid, witness=directory_digest()) == Removal(("cache", "local"), ())
    assert store.delete(oid, witness=directory_digest()) == Removal((), ())
    assert not store.cache.exists(oid) and not store.remotes["local"].exists(oid)
    assert store.remotes["local"].exists(members()["train/b.parquet"])
    assert store.remotes["local"].exists(directory_digest())


def test_a_remote_that_is_down_is_never_said_to_have_lost_an_object(places):
    store = add_all(places)
    store.push(list(members().values()), directory=directory_digest())
    oid = members()["a.parquet"]
    away = places.dvc_remote.rename(places.dvc_remote.with_name("unmounted"))
    removal = store.delete(oid, witness=directory_digest())
    assert removal.removed_from == ("cache",) and "cannot be reached" in removal.failures[0]
    away.rename(places.dvc_remote)
    assert store.delete(oid, witness=directory_digest()) == Removal(("local",), ())
