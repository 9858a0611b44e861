"""One person leaves: found, rewritten out, purged from everywhere; everybody else stays as they were."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from mlops.cli.main import mlops
from mlops.datasets.forgetting import find_expired, find_holdings, forget_subjects, purge_shards, sweep_returned
from mlops.datasets.importing import import_dataset
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import object_path
from mlops.datasets.reader import ShardReader
from mlops.datasets.returned import find_returned
from mlops.datasets.rewriting import rewrite_shards
from mlops.datasets.subjects import hash_subject
from mlops.datasets.tombstones import load_tombstones, tombstone_file
from mlops.datasets.verifying import find_damage
from mlops.datasets.version import load_dataset_version, read_shard, read_split
from mlops.errors import DatasetError
from mlops.places import Places

KEY = b"test"
both_cuts = pytest.mark.parametrize("imported", [1, 3], ids=["in one piece", "in partitions"], indirect=True)


def hash_of(person):
    return hash_subject(person, key=KEY)


def rows_of(version):
    tables = [read_split(version, split) for split in version.manifest.splits]
    return sorted(map(str, pa.concat_tables(tables).to_pylist()))


@pytest.fixture
def imported(people, request):
    people.recipe["partitions"] = getattr(request, "param", 1)
    people.write()
    import_dataset(people.places, "people")
    return people


@pytest.fixture
def person(people):
    """Somebody with several rows."""
    names = [row["person"] for row in people.rows]
    return max(sorted(set(names)), key=names.count)


@both_cuts
def test_a_person_is_found_in_one_isolation_group_with_all_rows(imported, person):
    holdings = find_holdings(imported.places, "people", hash_of(person))
    assert sum(holding.rows for holding in holdings) == sum(row["person"] == person for row in imported.rows) > 1
    assert len({holding.shard.group for holding in holdings}) == 1
    assert find_holdings(imported.places, "people", hash_of("nobody")) == ()


def test_the_index_is_rebuilt_when_lost_or_damaged(imported, person):
    before = find_holdings(imported.places, "people", hash_of(person))
    folder = imported.places.cache / "datasets" / "subjects"
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"short")
    assert find_holdings(imported.places, "people", hash_of(person)) == before
    shutil.rmtree(folder)
    assert find_holdings(imported.places, "people", hash_of(person)) == before


@both_cuts
def test_forgetting_removes_exactly_one_persons_rows_and_touches_one_shard(imported, person):
    before = load_dataset_version(imported.places, "people")
    done = forget_subjects(imported.places, "people", [hash_of(person)])
    after = load_dataset_version(imported.places, "people")
    assert done.rewrite.after == after
    assert len(set(before.manifest.shards) - set(after.manifest.shards)) == 1
    gone = str(hash_of(person))
    assert rows_of(after) == [row for row in rows_of(before) if gone not in row]
    assert done.rows_removed == sum(row["person"] == person for row in imported.rows)
    assert find_damage(imported.places, "people", dvc_digest=after.dvc_digest) == ()
    assert done.rewrite.moved_objects == 3, "the shard, the manifest and the .dir"


def test_an_import_afterwards_refuses_the_person_and_makes_the_same_version(imported, person):
    """Forgetting commutes with importing: that is what makes an erased version reproducible."""
    forget_subjects(imported.places, "people", [hash_of(person)])
    after = load_dataset_version(imported.places, "people")
    outcome = import_dataset(imported.places, "people")
    assert outcome.version == after
    assert outcome.rows_refused == sum(row["person"] == person for row in imported.rows)
    assert outcome.differences == ()


def test_the_order_of_forgetting_does_not_matter(people):
    import_dataset(people.places, "people")
    names = sorted({row["person"] for row in people.rows})
    chosen = random.Random(3).sample(names, 3)
    whole = shutil.copytree(people.places.root, people.places.root.parent / "other")
    for name in chosen:
        forget_subjects(people.places, "people", [hash_of(name)])
    other = Places(Path(whole))
    forget_subjects(other, "people", [hash_of(name) for name in reversed(chosen)])
    assert load_dataset_version(other, "people").digest == load_dataset_version(people.places, "people").digest


def test_forgetting_again_or_a_stranger_changes_nothing(imported, person):
    forget_subjects(imported.places, "people", [hash_of(person)])
    pinned = load_dataset_version(imported.places, "people")
    assert forget_subjects(imported.places, "people", [hash_of(person)]).rewrite is None
    assert forget_subjects(imported.places, "people", [hash_of("nobody")]).rewrite is None
    assert load_dataset_version(imported.places, "people") == pinned
    assert load_tombstones(imported.places, "people") == {hash_of(person), hash_of("nobody")}


@both_cuts
def test_purged_shards_are_gone_everywhere_and_the_rest_of_history_stays_readable(imported, person):
    before = load_dataset_version(imported.places, "people")
    cache = imported.places.cache / "shards"
    list(ShardReader(before, cache).batches("train", batch_size=8, seed=1, epoch=0, rank=0, world_size=1))
    done = forget_subjects(imported.places, "people", [hash_of(person)])
    old = [shard for shard, _ in done.rewrite.replaced]
    receipts = purge_shards(imported.places, "people", old)
    assert all(receipt.is_gone for receipt in receipts)
    assert {"cache", "local"} <= set(receipts[0].removed_from)
    wanted = hash_of(person)
    for path in imported.places.root.rglob("*"):
        if path.is_file() and path != tombstone_file(imported.places, "people"):
            content = path.read_bytes()
            assert wanted not in content and wanted.hex().encode() not in content, path
    for shard in before.manifest.shards:
        if shard in old:
            with pytest.raises(DatasetError, match="is in no store"):
                read_shard(before, shard)
        else:
            assert read_shard(before, shard).num_rows == shard.rows
    assert find_holdings(imported.places, "people", wanted) == ()
    assert (
        find_damage(imported.places, "people", dvc_digest=load_dataset_version(imported.places, "people").dvc_digest)
        == ()
    )


def test_what_the_pinned_version_needs_is_never_purged(imported, person):
    version = load_dataset_version(imported.places, "people")
    with pytest.raises(DatasetError, match="belong to the pinned version"):
        purge_shards(imported.places, "people", version.manifest.shards[:1])
    assert find_damage(imported.places, "people", dvc_digest=version.dvc_digest) == ()


def test_a_purged_object_that_comes_back_is_seen(imported, person):
    version = load_dataset_version(imported.places, "people")
    stale = shutil.copytree(imported.places.dvc_remote, imported.places.root / "stale")
    done = forget_subjects(imported.places, "people", [hash_of(person)])
    (old,) = [shard for shard, _ in done.rewrite.replaced]
    purge_shards(imported.places, "people", [old])
    assert find_returned(imported.places, "people") == ()
    url = load_locations(imported.places).object_urls[1]
    shutil.copy(object_path(f"{stale}/files/md5", old.md5), object_path(url, old.md5))
    assert find_returned(imported.places, "people") == (object_path(url, old.md5),)
    assert sweep_returned(imported.places, "people") == (f"{old.md5} from local",)
    assert find_returned(imported.places, "people") == () == sweep_returned(imported.places, "people")
    assert version.digest != load_dataset_version(imported.places, "people").digest


def test_a_group_whose_only_person_leaves_loses_its_shard(people):
    people.rows = [row for row in people.rows if row["person"] in {"person-1", "person-2", "person-3"}] or people.rows[
        :3
    ]
    people.write()
    import_dataset(people.places, "people")
    before = load_dataset_version(people.places, "people")
    name = people.rows[0]["person"]
    mates = [p for p in {row["person"] for row in people.rows} if p != name]
    done = forget_subjects(people.places, "people", [hash_of(name)])
    after = load_dataset_version(people.places, "people")
    alone = all(int.from_bytes(hash_of(m)[:8]) % 8 != int.from_bytes(hash_of(name)[:8]) % 8 for m in mates)
    assert (done.rewrite.replaced[0][1] is None) == alone
    assert len(after.manifest.shards) == len(before.manifest.shards) - alone
    assert find_damage(people.places, "people", dvc_digest=after.dvc_digest) == ()


@pytest.mark.parametrize("imported", [3], indirect=True)
def test_a_change_is_committed_without_a_checkout_of_the_rest(imported, tmp_path):
    """A clone with nothing but git's files and the remote: one shard is fetched, three objects are added."""
    clone = Places(tmp_path / "clone")
    shutil.copytree(imported.places.root, clone.root, ignore=shutil.ignore_patterns(".mlops", "people"))
    clone.dvc_remote.parent.mkdir(parents=True)
    shutil.copytree(imported.places.dvc_remote, clone.dvc_remote)
    version = load_dataset_version(clone, "people")
    shard = version.manifest.shards[2]
    rows = read_shard(version, shard)
    changed = rows.set_column(0, rows.schema.field(0), pa.array([44.0] * shard.rows, pa.float32()))
    done = rewrite_shards(clone, version, {shard.relpath: changed})
    assert read_shard(done.after, done.replaced[0][1]).column("age").to_pylist() == [44.0] * shard.rows
    assert set(version.manifest.shards) - set(done.after.manifest.shards) == {shard}
    cached = [path for path in (clone.state / "dvc-cache").rglob("*") if path.is_file()]
    assert len(cached) == done.moved_objects == 3
    shutil.rmtree(clone.state / "dvc-cache")
    if not (clone.root / ".git").exists():
        subprocess.run(["git", "init", "-q", str(clone.root)], check=True)
    pulled = subprocess.run(
        [sys.executable, "-m", "dvc", "pull"],
        cwd=clone.root,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert pulled.returncode == 0, pulled.stderr
    assert find_damage(clone, "people", dvc_digest=done.after.dvc_digest) == ()


def test_a_version_that_moved_meanwhile_is_not_overwritten(imported, person):
    version = load_dataset_version(imported.places, "people")
    forget_subjects(imported.places, "people", [hash_of(person)])
    with pytest.raises(DatasetError, match="was changed by another command"):
        rewrite_shards(imported.places, version, {version.manifest.shards[0].relpath: read_split(version, "train")})


def test_rows_past_retention_name_their_people(people):
    people.recipe["retention_days"] = 10
    people.recipe["columns"].append({"name": "seen", "kind": "number", "roles": ["time"]})
    day = 86_400
    for number, row in enumerate(people.rows):
        row["seen"] = str(1000 * day if number % 3 else 995 * day)
    version = import_dataset(people.write().places, "people").version
    expected = {hash_of(row["person"]) for row in people.rows if row["seen"] == str(995 * day)}
    assert find_expired(version, now_us=1006 * day * 1_000_000) == expected
    assert find_expired(version, now_us=1004 * day * 1_000_000) == frozenset()


def test_find_reads_the_id_from_standard_input_and_never_says_it(imported, person, monkeypatch):
    monkeypatch.chdir(imported.places.root)
    done = CliRunner().invoke(mlops, ["dataset", "find", "people", "--subject", "--json"], input=f"{person}\n")
    found = json.loads(done.stdout)
    assert sum(one["rows"] for one in found["holdings"]) == sum(row["person"] == person for row in imported.rows)
    assert person not in done.output
    assert not found["is_withdrawn"]
