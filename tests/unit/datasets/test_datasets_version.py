import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlops.datasets.objects import object_path
from mlops.datasets.pins import render_directory
from mlops.datasets.version import load_version_of, read_split
from mlops.errors import DatasetError


def test_a_version_is_small_and_survives_pickling(version):
    again = pickle.loads(pickle.dumps(version))
    assert (again, again.digest) == (version, version.digest)
    assert len(pickle.dumps(version)) < 10_000


def test_a_split_comes_in_manifest_order_with_the_columns_asked_for(version):
    table = read_split(version, "train", columns=["left", "age"])
    assert table.column_names == ["left", "age"]
    assert table.num_rows == sum(shard.rows for shard in version.manifest.shards_of("train"))
    assert read_split(version, "train").column_names == ["age", "plan", "region", "left", "subject"]


def test_an_unknown_column_names_the_known_ones(version):
    with pytest.raises(DatasetError) as caught:
        read_split(version, "train", columns=["colour"])
    assert "'colour'" in caught.value.message and "age" in caught.value.hint


def test_a_changed_shard_is_read_from_another_store_or_refused(version, tmp_path, moved):
    shard = version.manifest.shards_of("train")[0]
    first, second = tmp_path / "objects", tmp_path / "second"
    shutil.copytree(first, second)
    path = Path(object_path(str(first), shard.md5))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert read_split(moved(version, first, second), "train").equals(read_split(moved(version, second), "train"))
    with pytest.raises(DatasetError, match="changed where it is stored") as caught:
        read_split(moved(version, first), "train")
    assert shard.relpath in caught.value.message


def test_a_shard_with_the_right_md5_and_another_sha256_is_refused(build, stored, tmp_path):
    """Chosen-prefix collisions make md5 alone no protection; here the manifest is the one that lies."""
    version = stored(build, tmp_path / "objects")
    shards = list(version.manifest.shards)
    lying = json.loads(json.dumps([vars(shard) for shard in shards]))[0] | {"sha256": "0" * 64}
    manifest = replace(version.manifest, shards=(type(shards[0])(**lying), *shards[1:]))
    with pytest.raises(DatasetError, match="changed where it is stored"):
        read_split(replace(version, manifest=manifest), shards[0].split)


def test_a_missing_directory_object_stops_and_is_never_empty(version, tmp_path):
    Path(object_path(str(tmp_path / "objects"), version.dvc_digest)).unlink()
    with pytest.raises(DatasetError, match="is in no store"):
        load_version_of(version.object_urls, "people", dvc_digest=version.dvc_digest)


def test_a_directory_with_a_shard_fewer_is_refused_by_its_manifest(build, stored, tmp_path):
    stored(build, tmp_path / "objects")
    members = dict(build.members)
    members.pop(build.manifest.shards[0].relpath)
    content = render_directory(members)
    import hashlib

    digest = hashlib.md5(content).hexdigest() + ".dir"
    path = Path(object_path(str(tmp_path / "objects"), digest))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="disagree about 1 shards"):
        load_version_of((str(tmp_path / "objects"),), "people", dvc_digest=digest)


def test_a_shard_comes_from_a_peer_before_the_remote_and_a_bad_peer_is_passed_over(version, tmp_path):
    whole, cache, peer, remote = (tmp_path / name for name in ("objects", "cache", "peer", "remote"))
    shutil.copytree(whole, peer)
    there = replace(version, object_urls=(str(cache), str(remote)), peer_urls=(str(peer),))
    expected = read_split(version, "train")
    assert read_split(there, "train").equals(expected)  # the remote has nothing
    shutil.copytree(whole, remote)
    for shard in version.manifest.shards_of("train"):
        path = Path(object_path(str(peer), shard.md5))
        path.write_bytes(b"changed on the peer")
    assert read_split(there, "train").equals(expected)


def test_a_store_that_cannot_be_asked_is_passed_over_and_named_when_no_other_has_the_object(version, tmp_path, moved):
    down, whole = tmp_path / "down", tmp_path / "objects"
    shard = version.manifest.shards_of("train")[0]
    for one in version.manifest.shards:
        Path(object_path(str(down), one.md5)).mkdir(parents=True)  # reading it is an OSError
    assert read_split(moved(version, down, whole), "train").num_rows == read_split(version, "train").num_rows
    with pytest.raises(DatasetError, match=f"{shard.relpath} of dataset people cannot be read") as caught:
        read_split(moved(version, down), "train")
    assert str(down) in caught.value.items[0]
    assert caught.value.hint == "is the remote reachable?"
