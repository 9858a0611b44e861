import random

import numpy as np
import pyarrow as pa
import pytest

from mlops.datasets import shards
from mlops.datasets.group_spool import GroupSpool
from mlops.datasets.subjects import group_of
from mlops.datasets.version import read_split


def test_thread_count_does_not_change_a_byte(people, tmp_path):
    before = pa.cpu_count()
    digests = set()
    try:
        for threads in (1, 4):
            pa.set_cpu_count(threads)
            digests.add(people.build(tmp_path / str(threads)).dvc_digest)
    finally:
        pa.set_cpu_count(before)
    assert len(digests) == 1


def test_raw_order_of_people_does_not_change_a_byte(people, build, tmp_path):
    order = list(dict.fromkeys(row["person"] for row in people.rows))
    random.Random(1).shuffle(order)
    people.rows.sort(key=lambda row: order.index(row["person"]))
    assert people.write().build(tmp_path / "again").manifest.shards == build.manifest.shards


def test_all_rows_of_a_person_lie_in_the_group_of_its_hash(build, version):
    seen = {}
    for split in version.manifest.splits:
        for subject in set(read_split(version, split, columns=["subject"]).column("subject").to_pylist()):
            assert subject not in seen
            seen[subject] = split
            assert version.schema.split_of_group(group_of(subject, groups=8)) == split
    assert sum(shard.rows for shard in version.manifest.shards) == 300


def test_groups_of_many_rows_are_the_groups_of_each(version):
    rows = read_split(version, "train")
    expected = [group_of(subject, groups=8) for subject in rows.column("subject").to_pylist()]
    assert shards.groups_of_rows(rows, groups=8).tolist() == expected


def test_a_group_is_cut_into_shards_of_the_stated_size(people, tmp_path):
    people.recipe["rows_per_shard"] = 10
    build = people.write().build(tmp_path / "build")
    assert max(shard.rows for shard in build.manifest.shards) == 10
    assert build.manifest.rows == 300


@pytest.mark.parametrize(
    "limits",
    [{"open_files": 2}, {"sort_bytes": 1_000}, {"open_files": 2, "sort_bytes": 2_000}],
    ids=["more groups than open files", "groups larger than what is sorted at once", "both"],
)
def test_a_spool_gives_the_same_rows_with_little_memory(limits, version, tmp_path):
    rows = read_split(version, "train")
    found = []
    for number, options in enumerate(({}, limits)):
        with GroupSpool(tmp_path / str(number), version.schema, **options) as spool:
            spool.append(rows.slice(0, 50))
            spool.append(rows.slice(50))
            found.append([(group, list(pieces)) for group, pieces in spool.iterate_groups(range(8))])
    assert len(found[0]) == 5
    assert ("sort_bytes" in limits) == any(len(pieces) > 1 for _, pieces in found[1])
    assert [(group, pa.concat_tables(pieces)) for group, pieces in found[1]] == [
        (group, pieces[0]) for group, pieces in found[0]
    ]


def test_pieces_are_cut_to_shards_of_one_size_and_none_is_too_large(version):
    rows = read_split(version, "train")
    pieces = [rows.slice(start, 7) for start in range(0, rows.num_rows, 7)]
    assert pa.concat_tables(shards.cut_rows(pieces, size=20)) == rows
    assert {it.num_rows for it in list(shards.cut_rows(pieces, size=20))[:-1]} == {20}
    wide = pa.schema([pa.field("x", pa.list_(pa.field("item", pa.float32(), nullable=False), 1 << 20), nullable=False)])
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40 << 20, np.float32)), type=wide.field(0).type)
    cut = shards.cut_rows([pa.Table.from_arrays([values], schema=wide)], size=1_000)
    assert [it.num_rows for it in cut] == [16, 16, 8], "4 MB a row, at most 64 MB a shard"


def test_no_raw_id_and_no_statistics_in_a_shard(build):
    import pyarrow.parquet as pq

    for path in build.folder.rglob("*.parquet"):
        assert b"person" not in path.read_bytes()
        metadata = pq.read_metadata(path)
        assert not any(metadata.row_group(0).column(i).is_stats_set for i in range(metadata.num_columns))


@pytest.mark.parametrize("column", ["age", "plan"])
def test_a_column_digest_says_which_column_changed(people, build, tmp_path, column):
    row = people.rows[0]
    row[column] = {"age": "19" if row["age"] != "19" else "20", "plan": "pro" if row["plan"] != "pro" else "basic"}[
        column
    ]
    other = people.write().build(tmp_path / "other").manifest
    before, after = dict(build.manifest.columns), dict(other.columns)
    assert {name for name in before if before[name] != after[name]} == {column}
