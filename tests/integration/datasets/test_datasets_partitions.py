"""A dataset of many partitions: each its own DVC file, one version, one listing."""

import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest

from mlops.datasets.importing import import_dataset
from mlops.datasets.listing import list_datasets
from mlops.datasets.parts import list_shards
from mlops.datasets.reader import ShardReader
from mlops.datasets.verifying import find_damage
from mlops.datasets.version import load_dataset_version, read_split
from mlops.errors import DatasetError


@pytest.fixture
def cut(people):
    people.recipe["partitions"] = 3
    people.write()
    return people


def rows_of(version):
    tables = [read_split(version, split) for split in version.manifest.splits]
    return sorted(map(str, pa.concat_tables(tables).to_pylist()))


def test_partitions_hold_the_same_rows_as_one_piece(people, cut, tmp_path, stored):
    version = import_dataset(cut.places, "people").version
    assert load_dataset_version(cut.places, "people") == version
    assert load_dataset_version(cut.places, "people", revision=version.dvc_digest) == version
    assert [part.count("=") for part in version.dvc_digest.split(",")] == [1, 1, 1]
    cut.recipe["partitions"] = 1
    whole = stored(cut.write().build(tmp_path / "whole"), tmp_path / "objects")
    assert rows_of(version) == rows_of(whole)
    batches = ShardReader(version, tmp_path / "cache").batches(
        "train", batch_size=16, seed=1, epoch=0, rank=0, world_size=1
    )
    assert sum(len(batch.label) for batch in batches) == read_split(version, "train").num_rows


def test_each_partition_is_pinned_beside_its_folder_and_dvc_agrees(cut):
    version = import_dataset(cut.places, "people").version
    folder = cut.places.root / "datasets"
    assert sorted(path.name for path in folder.glob("*.dvc")) == [f"people.p0000{number}.dvc" for number in range(3)]
    assert sorted(path.name for path in (folder / "people").iterdir()) == ["p00000", "p00001", "p00002"]
    subprocess.run(["git", "init", "-q", str(cut.places.root)], check=True)
    shutil.rmtree(folder / "people" / "p00002")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status"],
        cwd=cut.places.root,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(cut.places.root)},
    )
    assert "p00002" in done.stdout and "p00001" not in done.stdout, done.stdout + done.stderr
    (listed,) = list_datasets(cut.places)
    assert (listed["partitions"], listed["rows"]) == (3, 300)
    paths = [path for path, _ in list_shards(version.object_urls, "people", dvc_digest=version.dvc_digest)]
    assert len(paths) == len(version.manifest.shards) + 6


def test_a_rerun_finds_all_partitions_and_mends_one(cut):
    version = import_dataset(cut.places, "people").version
    assert import_dataset(cut.places, "people").is_unchanged
    next((cut.places.root / "datasets" / "people" / "p00001").rglob("*.parquet")).unlink()
    assert len(find_damage(cut.places, "people", dvc_digest=version.dvc_digest)) == 1
    assert import_dataset(cut.places, "people").version == version
    assert find_damage(cut.places, "people", dvc_digest=version.dvc_digest) == ()


def test_a_changed_row_changes_one_partition_only(cut):
    old = import_dataset(cut.places, "people").version
    cut.rows[0]["age"] = "33" if cut.rows[0]["age"] != "33" else "34"
    cut.write()
    with pytest.raises(DatasetError) as caught:
        import_dataset(cut.places, "people")
    assert {line.split(":")[0] for line in caught.value.items} <= {"p00000", "p00001", "p00002"}
    assert len({line.split(":")[0] for line in caught.value.items}) == 1
    new = import_dataset(cut.places, "people", accept_changes=True).version
    before, after = old.dvc_digest.split(","), new.dvc_digest.split(",")
    assert sum(first != second for first, second in zip(before, after, strict=True)) == 1


def test_another_cut_replaces_the_former_one(cut):
    three = import_dataset(cut.places, "people").version
    for partitions in (1, 2, 3):
        cut.recipe["partitions"] = partitions
        cut.write()
        version = import_dataset(cut.places, "people", accept_changes=True).version
        assert load_dataset_version(cut.places, "people") == version
        assert import_dataset(cut.places, "people").is_unchanged
    assert version == three
