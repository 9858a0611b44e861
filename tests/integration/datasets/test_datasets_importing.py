"""Imports into a real DVC store, with everything that can come between."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlops.datasets.importing import import_dataset
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import object_path
from mlops.datasets.pins import load_pins
from mlops.datasets.verifying import find_damage, find_present_version
from mlops.datasets.version import load_dataset_version, read_split
from mlops.errors import DatasetError, MlopsError
from mlops.places import Places


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def move_person(people) -> None:
    people.rows[0]["plan"] = "basic" if people.rows[0]["plan"] != "basic" else "pro"
    people.write()


def test_an_import_is_pinned_pushed_placed_and_readable(people):
    outcome = import_dataset(people.places, "people")
    version = load_dataset_version(people.places, "people")
    assert version == outcome.version
    assert not outcome.is_unchanged
    pin = load_pins(people.places.datasets_dvc)["people"]
    assert (pin.dvc_digest, pin.manifest, pin.rows) == (version.dvc_digest, version.digest, 300)
    assert sum(read_split(version, split).num_rows for split in version.manifest.splits) == 300
    assert find_damage(people.places, "people", dvc_digest=version.dvc_digest) == ()
    assert (people.places.dataset_folder("people") / "dataset.yaml").is_file()


def test_a_rerun_finds_everything_and_writes_nothing(people):
    first = import_dataset(people.places, "people")
    before = snapshot(people.places.root)
    again = import_dataset(people.places, "people")
    assert again.is_unchanged
    assert again.version == first.version
    assert snapshot(people.places.root) == before


def test_another_clone_makes_the_same_bytes(people, tmp_path):
    first = import_dataset(people.places, "people").version
    clone = Places(tmp_path / "elsewhere" / "with a longer name")
    clone.root.mkdir(parents=True)
    for name in ("datasets.dvc", "datasets/people.yaml", "datasets/people.csv"):
        (clone.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(people.places.root / name, clone.root / name)
    pinned = clone.datasets_dvc.read_bytes()
    outcome = import_dataset(clone, "people")
    assert (outcome.version.digest, outcome.version.dvc_digest) == (first.digest, first.dvc_digest)
    assert clone.datasets_dvc.read_bytes() == pinned


@pytest.mark.parametrize("has_objects", [True, False], ids=["with the old objects", "in a fresh clone"])
def test_another_result_than_the_pinned_one_says_what_differs_and_changes_nothing(people, has_objects):
    import_dataset(people.places, "people")
    if not has_objects:
        shutil.rmtree(people.places.state)
    move_person(people)
    pinned = people.places.datasets_dvc.read_bytes()
    placed = snapshot(people.places.dataset_folder("people"))
    with pytest.raises(DatasetError) as caught:
        import_dataset(people.places, "people")
    lines = "\n".join(caught.value.items)
    assert "column plan: has other values" in lines and "column age" not in lines
    assert ("shard train/" in lines or "shard test/" in lines or "shard validation/" in lines) == has_objects
    assert "--accept-changes" in caught.value.hint
    assert people.places.datasets_dvc.read_bytes() == pinned
    assert snapshot(people.places.dataset_folder("people")) == placed


def test_a_change_that_is_meant_moves_one_shard(people):
    old = import_dataset(people.places, "people").version
    move_person(people)
    new = import_dataset(people.places, "people", accept_changes=True).version
    changed = set(new.manifest.shards) - set(old.manifest.shards)
    assert len(changed) == 1
    assert load_dataset_version(people.places, "people").digest == new.digest
    assert load_dataset_version(people.places, "people", revision=old.dvc_digest) == old
    assert read_split(old, "train").num_rows == read_split(new, "train").num_rows


DAMAGE = {
    "a shard of the cache is gone": lambda places, url, shard, version: Path(object_path(url, shard.md5)).unlink(),
    "a shard of the cache has other bytes": lambda places, url, shard, version: spoil(
        Path(object_path(url, shard.md5))
    ),
    "the directory object is gone": lambda places, url, shard, version: Path(
        object_path(url, version.dvc_digest)
    ).unlink(),
    "the remote is gone": lambda places, url, shard, version: shutil.rmtree(places.dvc_remote),
    "the workspace folder is gone": lambda places, url, shard, version: shutil.rmtree(places.dataset_folder("people")),
    "a workspace file was edited": lambda places, url, shard, version: spoil(
        places.dataset_folder("people") / shard.relpath
    ),
    "a stranger lies in the workspace": lambda places, url, shard, version: (
        places.dataset_folder("people") / "notes.txt"
    ).write_text("x"),
    "all state is gone": lambda places, url, shard, version: shutil.rmtree(places.state),
}


def spoil(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.chmod(0o444)  # DVC trusts a read-only object without hashing it; we must not


@pytest.mark.parametrize("case", DAMAGE)
def test_a_rerun_mends_it_when(case, people):
    version = import_dataset(people.places, "people").version
    DAMAGE[case](people.places, load_locations(people.places).object_urls[0], version.manifest.shards[0], version)
    assert find_damage(people.places, "people", dvc_digest=version.dvc_digest)
    assert find_present_version(people.places, "people") is None
    assert import_dataset(people.places, "people").version.digest == version.digest
    assert find_damage(people.places, "people", dvc_digest=version.dvc_digest) == ()


def test_wrong_rows_are_all_counted_and_nothing_is_half_written(people):
    people.rows[3]["plan"] = "gold"
    people.rows[4]["plan"] = "gold"
    people.rows[5]["age"] = "old"
    people.write()
    before = people.places.datasets_dvc.read_bytes()
    with pytest.raises(DatasetError) as caught:
        import_dataset(people.places, "people")
    assert caught.value.items == (
        "age: 1 values are not numbers, e.g. 'old'",
        "plan: 2 values are not among `categories`, e.g. 'gold'",
    )
    assert people.places.datasets_dvc.read_bytes() == before
    assert not people.places.dataset_folder("people").exists()
    assert not (people.places.state / "dvc-cache").exists()


def test_an_import_without_the_key_is_refused(people):
    people.recipe["subject_key"] = {"secret": "NO_SUCH_KEY_HERE"}
    people.write()
    with pytest.raises(DatasetError, match="NO_SUCH_KEY_HERE is missing"):
        import_dataset(people.places, "people")


def test_a_missing_remote_is_said_before_any_work(people):
    (people.places.root / ".dvc").mkdir()
    (people.places.root / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(DatasetError, match="names no remote"):
        import_dataset(people.places, "people")


def test_an_empty_file_is_never_an_empty_dataset(people):
    (people.places.root / "datasets" / "people.csv").write_text("")
    with pytest.raises(DatasetError, match="is empty"):
        import_dataset(people.places, "people")
    (people.places.root / "datasets" / "people.csv").write_text("person,age,plan,region,left\n")
    with pytest.raises(MlopsError):
        import_dataset(people.places, "people")


def test_two_importers_at_once_both_end_well(people):
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: import_dataset(people.places, "people"), range(2)))
    assert sorted(outcome.is_unchanged for outcome in outcomes) == [False, True]
    assert outcomes[0].version == outcomes[1].version


def test_a_test_row_that_also_stands_in_train_is_counted(people):
    values = {name: people.rows[0][name] for name in ("age", "plan", "region", "left")}
    people.rows.extend({"person": f"copy-{number}", **values} for number in range(20))
    people.write()
    assert import_dataset(people.places, "people").rows_in_train_and_test >= 1


IMPORT = "import sys; from pathlib import Path; from mlops.places import Places\n\
from mlops.datasets.importing import import_dataset\n\
import_dataset(Places(Path(sys.argv[1])), 'people', accept_changes=True)"


@pytest.mark.parametrize("delay_seconds", [0.35, 0.6, 0.8, 1.0, 1.2])
def test_a_killed_import_leaves_the_old_version_and_can_be_repeated(people, delay_seconds):
    old = import_dataset(people.places, "people").version
    move_person(people)
    child = subprocess.Popen([sys.executable, "-c", IMPORT, str(people.places.root)])
    time.sleep(delay_seconds)
    if child.poll() is None:
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    pinned = load_dataset_version(people.places, "people")
    assert sum(read_split(pinned, split).num_rows for split in pinned.manifest.splits) == 300
    assert load_dataset_version(people.places, "people", revision=old.dvc_digest) == old
    new = import_dataset(people.places, "people", accept_changes=True).version
    assert new.digest != old.digest
    assert find_damage(people.places, "people", dvc_digest=new.dvc_digest) == ()
    left = list((people.places.cache / "datasets").glob("import-*"))
    assert not left and not list((people.places.root / "datasets").glob(".people*"))


def test_a_changed_range_is_said_even_when_no_value_differs(people):
    import_dataset(people.places, "people")
    shutil.rmtree(people.places.state)
    people.recipe["columns"][0]["maximum"] = 121
    people.write()
    with pytest.raises(DatasetError) as caught:
        import_dataset(people.places, "people")
    assert caught.value.items[0].startswith("dataset.yaml:")
    assert not any(line.startswith("column") for line in caught.value.items)
