"""Keeping builds: DVC cache, remotes (`.dir` last), workspace folder (rename), and only then the pin.

A kill at any point leaves the old version of a part in force. Leaves to others: what is built and whether to keep it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from mlops.datasets.building import Build
from mlops.datasets.dvc_store import DvcStore
from mlops.datasets.parts import Part, join_digests, part_pin_files
from mlops.datasets.pins import Pin, load_pins, remove_pin, write_pin
from mlops.errors import DatasetError
from mlops.files import folder_aside
from mlops.places import Places

MAXIMUM_SHARDS = 10_000


def keep_builds(places: Places, builds: Sequence[Build]) -> str:
    """Store, push, place and pin every part of a version.

    Returns:
        The version's DVC digest.

    Raises:
        DatasetError: A part has too many shards, or a store cannot be written; nothing of it is pinned then.
    """
    for build in builds:
        if len(build.manifest.shards) > MAXIMUM_SHARDS:
            raise DatasetError(
                f"{build.part.folder} would have {len(build.manifest.shards)} shards in one DVC file",
                hint=f"raise `partitions` or `rows_per_shard` in the recipe: {MAXIMUM_SHARDS} is the limit",
            )
    store = DvcStore(places)
    for build in builds:
        directory_file = build.folder.parent / build.dvc_digest
        directory_file.write_bytes(build.directory)
        store.add({md5: build.folder / path for path, md5 in build.members.items()})
        store.add({build.dvc_digest: directory_file})
        store.push(sorted(set(build.members.values())), directory=build.dvc_digest)
    for build in builds:
        with folder_aside(places.root / build.part.folder) as aside:
            shutil.copytree(build.folder, aside, dirs_exist_ok=True)
    for build in builds:
        path = places.root / build.part.pin_path
        if load_pins(path).get(build.part.name or build.part.dataset) != pin_of(build):
            write_pin(path, pin_of(build))
    _remove_former_parts(places, {build.part for build in builds})
    return join_digests(tuple((build.part, build.dvc_digest) for build in builds))


def _remove_former_parts(places: Places, parts: set[Part]) -> None:
    """Pins and folders of a former cut of the dataset: a version has one cut only."""
    dataset = next(iter(parts)).dataset
    if Part(dataset) in parts:
        for path in part_pin_files(places, dataset):
            path.unlink()
        return
    remove_pin(places.datasets_dvc, Part(dataset).out_path)
    kept = {part.pin_path.rpartition("/")[2] for part in parts}
    for path in part_pin_files(places, dataset):
        if path.name not in kept:
            path.unlink()
    for path in places.dataset_folder(dataset).iterdir():
        if path.name not in {part.name for part in parts}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def pin_of(build: Build) -> Pin:
    """What the DVC file will say about a build."""
    return Pin(
        path=build.part.out_path,
        dvc_digest=build.dvc_digest,
        bytes=build.size,
        files=len(build.members),
        manifest=build.manifest.digest,
        rows=build.manifest.rows,
        schema=build.manifest.schema_sha256[:16],
        writer=build.manifest.writer,
        columns={column: digest[:16] for column, digest in build.manifest.columns},
    )
