"""Importing: raw files become a dataset version, built aside, compared, stored, pushed and only then pinned.

Order of effects: shards aside, DVC cache, remotes (`.dir` last), workspace folder (rename), `datasets.dvc`. A kill at
any point leaves the old version in force. Leaves to others: each of those steps.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mlops.datasets.comparing import describe_differences
from mlops.datasets.locations import Locations, load_locations, prepare_dvc_files
from mlops.datasets.objects import is_local, object_path, verify_file
from mlops.datasets.pins import Pin, load_pins, parse_directory, write_pin
from mlops.datasets.receipts import Receipt, load_receipt, save_receipt
from mlops.datasets.recipe import load_recipe
from mlops.datasets.sources import Downloader, fetch_files
from mlops.datasets.subjects import load_subject_key
from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.errors import DatasetError
from mlops.files import folder_aside
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_json

if TYPE_CHECKING:
    from mlops.datasets.building import Build

LOCK_SECONDS = 600
HASHED_BYTES = 512 << 20
"""A rerun hashes every object of datasets up to this size; of larger ones it compares sizes (`verify` hashes all)."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ImportOutcome:
    """What an import found or made."""

    version: DatasetVersion
    is_unchanged: bool
    """Whether the version was there before, whole, and nothing was written."""
    differences: tuple[str, ...]
    """What differs from the version pinned before, one line each."""
    rows_in_train_and_test: int
    """Test rows whose values also stand in train (reported, never dropped)."""
    source_digest: str
    """`sha256:…` of the raw files' digests."""


def import_dataset(
    places: Places,
    name: str,
    *,
    accept_changes: bool = False,
    download: Downloader | None = None,
    progress: Progress = lambda line: None,
) -> ImportOutcome:
    """Make the version that the recipe describes, or find that it is there.

    Args:
        places: The project.
        name: Of the dataset; its recipe is `datasets/<name>.yaml`.
        accept_changes: Pin the new version when it differs from the pinned one; without, that is an error.
        download: Gets wheels; default is pip.
        progress: Told each stage.

    Raises:
        DatasetError: Unknown dataset, raw files or rows that are not as described, a version that differs from the
            pinned one, a store that cannot be written.
        EnvironmentFault: A download failed, or the disk is full.
        ProjectError: The recipe has problems.
    """
    recipe = load_recipe(places, name)
    subject_key = load_subject_key(places, recipe.subject_key)
    prepare_dvc_files(places)
    load_locations(places)
    with _alone(places) as scratch:
        fetched = fetch_files(places, recipe, download=download)
        receipt = Receipt(
            recipe=recipe.digest,
            code=digest_code("mlops.datasets"),
            source=digest_json({file.raw.path: file.sha256 for file in fetched}),
        )
        found = _find_present(places, name, receipt)
        if found is not None:
            return found
        from mlops.datasets.building import build_version  # pyarrow: 0.3 s that a rerun saves

        progress(f"building shards of {name}")
        build = build_version(name, recipe, fetched=fetched, subject_key=subject_key, folder=scratch)
        return _keep(places, name, build, receipt=receipt, accept_changes=accept_changes, progress=progress)


def find_present_version(places: Places, name: str) -> DatasetVersion | None:
    """The pinned version, when it lies whole in every place; None when something must be imported or mended."""
    pin = load_pins(places.datasets_dvc).get(name)
    if pin is None or find_damage(places, name, dvc_digest=pin.dvc_digest):
        return None
    return load_version_of(load_locations(places).object_urls, name, dvc_digest=pin.dvc_digest)


def find_damage(places: Places, name: str, *, dvc_digest: str, hash_bytes: int = HASHED_BYTES) -> tuple[str, ...]:
    """Everything of a version that is not where it should be: cache, local remotes, workspace folder.

    Args:
        places: The project.
        name: Of the dataset.
        dvc_digest: `<md5>.dir` of the version.
        hash_bytes: Datasets up to this size are hashed; of larger ones only sizes are compared.

    Returns:
        One line for each missing or changed file; empty when all is well.
    """
    locations = load_locations(places)
    try:
        version = load_version_of(locations.object_urls, name, dvc_digest=dvc_digest)
    except DatasetError as error:
        return (error.message,)
    members = _members(locations, dvc_digest)
    sizes = {shard.relpath: shard.bytes for shard in version.manifest.shards}
    is_hashed = version.manifest.bytes <= hash_bytes
    damage: list[str] = []
    for path, md5 in {**members, ".dir": dvc_digest}.items():
        files = [object_path(url, md5) for url in locations.object_urls if is_local(url)]
        if path in members:
            files.append(str(places.dataset_folder(name) / path))
        for file in files:
            problem = verify_file(Path(file), md5=md5 if is_hashed else None, size=sizes.get(path))
            if problem:
                damage.append(f"{path}: {problem}")
    folder = places.dataset_folder(name)
    strangers = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - members.keys()
    damage.extend(f"{path}: stands in {folder} and not in the version" for path in sorted(strangers))
    return tuple(damage)


def _members(locations: Locations, dvc_digest: str) -> Mapping[str, str]:
    from mlops.datasets.objects import read_object

    content = read_object(locations.object_urls, dvc_digest, what=dvc_digest)
    return parse_directory(content, source=dvc_digest)


def _find_present(places: Places, name: str, receipt: Receipt) -> ImportOutcome | None:
    """The pinned version, when it came from the same inputs and lies whole in every place."""
    pin = load_pins(places.datasets_dvc).get(name)
    last = load_receipt(places, name)
    if pin is None or last is None or not last.has_same_inputs(receipt) or last.dvc_digest != pin.dvc_digest:
        return None
    version = find_present_version(places, name)
    if version is None:
        return None
    return ImportOutcome(
        version=version,
        is_unchanged=True,
        differences=(),
        rows_in_train_and_test=last.rows_in_train_and_test,
        source_digest=receipt.source,
    )


def _keep(
    places: Places, name: str, build: Build, *, receipt: Receipt, accept_changes: bool, progress: Progress
) -> ImportOutcome:
    """Compare with the pin, store, push, place and pin."""
    from mlops.datasets.dvc_store import DvcStore  # DVC: 0.3 s that a rerun saves

    pin = load_pins(places.datasets_dvc).get(name)
    differences: tuple[str, ...] = ()
    if pin is not None and pin.dvc_digest != build.dvc_digest:
        differences = describe_differences(pin, build.manifest, urls=load_locations(places).object_urls)
        if not accept_changes:
            raise DatasetError(
                f"the import of {name} gives {build.dvc_digest}, datasets.dvc pins {pin.dvc_digest}",
                items=differences,
                hint=f"if the change is meant: mlops dataset import {name} --accept-changes",
            )
    store = DvcStore(places)
    directory_file = build.folder.parent / build.dvc_digest
    directory_file.write_bytes(build.directory)
    progress(f"storing {len(build.members)} objects")
    store.add({md5: build.folder / path for path, md5 in build.members.items()})
    store.add({build.dvc_digest: directory_file})
    store.push(sorted(set(build.members.values())), directory=build.dvc_digest)
    with folder_aside(places.dataset_folder(name)) as aside:
        shutil.copytree(build.folder, aside, dirs_exist_ok=True)
    if pin is None or pin.dvc_digest != build.dvc_digest or not pin.manifest:
        write_pin(places.datasets_dvc, pin_of(build))
    save_receipt(
        places,
        name,
        replace(receipt, dvc_digest=build.dvc_digest, rows_in_train_and_test=build.rows_in_train_and_test),
    )
    return ImportOutcome(
        version=load_version_of(load_locations(places).object_urls, name, dvc_digest=build.dvc_digest),
        is_unchanged=False,
        differences=differences,
        rows_in_train_and_test=build.rows_in_train_and_test,
        source_digest=receipt.source,
    )


def pin_of(build: Build) -> Pin:
    """What `datasets.dvc` will say about a build."""
    return Pin(
        name=build.manifest.dataset,
        dvc_digest=build.dvc_digest,
        bytes=build.size,
        files=len(build.members),
        manifest=build.manifest.digest,
        rows=build.manifest.rows,
        writer=build.manifest.writer,
        columns={column: digest[:16] for column, digest in build.manifest.columns},
    )


@contextmanager
def _alone(places: Places) -> Iterator[Path]:
    """One importer at a time; yields a scratch folder, after removing what killed imports left."""
    folder = places.cache / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "import.lock", timeout=LOCK_SECONDS):
            for left in folder.glob("import-*"):
                shutil.rmtree(left, ignore_errors=True)
            for left in (places.root / "datasets").glob(".*.*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="import-", dir=folder) as scratch:
                yield Path(scratch)
    except Timeout as error:
        raise DatasetError(
            f"another import has held {folder}/import.lock for {LOCK_SECONDS} s", hint="wait for it, or end it"
        ) from error
