"""Importing: raw files become a dataset version, built aside, compared with what is pinned, and only then kept.

Leaves to others: building (building.py), storing and pinning (keeping.py), what is whole (verifying.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlops.datasets.comparing import describe_differences
from mlops.datasets.locations import load_locations, prepare_dvc_files
from mlops.datasets.locking import writing_datasets
from mlops.datasets.parts import load_part_pins
from mlops.datasets.raw_removal import drop_downloads
from mlops.datasets.receipts import Receipt, load_receipt, save_receipt
from mlops.datasets.recipe import WheelSource, load_recipe
from mlops.datasets.sources import Downloader, fetch_files, fetch_source_digests
from mlops.datasets.subjects import load_subject_key
from mlops.datasets.tombstones import load_tombstones
from mlops.datasets.verifying import find_present_version, pinned_digest
from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.errors import DatasetError
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_json

if TYPE_CHECKING:
    from mlops.datasets.building import Build

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
    rows_refused: int
    """Rows of withdrawn people that were kept out."""
    leaks: tuple[str, ...]
    """Features that alone give the label away, one line each (reported, never dropped)."""
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
    with writing_datasets(places) as scratch:
        tombstones = load_tombstones(places, name)
        receipt = Receipt(
            recipe=recipe.digest,
            code=digest_code("mlops.datasets"),
            source=digest_json(fetch_source_digests(places, recipe, download=download)),
            tombstones=digest_json(sorted(subject.hex() for subject in tombstones)),
        )
        found = _find_present(places, name, receipt)
        if found is not None:
            return found
        from mlops.datasets.building import build_version  # pyarrow: 0.3 s that a rerun saves

        fetched = fetch_files(places, recipe, download=download)
        progress(f"building shards of {name}")
        from mlops.datasets.keeping import keep_builds  # DVC: 0.3 s that a rerun saves

        builds = build_version(
            name, recipe, fetched=fetched, subject_key=subject_key, folder=scratch, tombstones=tombstones
        )
        differences = _find_differences(places, builds)
        if differences and not accept_changes:
            meant = f"if the change is meant: mlops dataset import {name} --accept-changes"
            withdrawn = builds[0].rows_refused > (last.rows_refused if (last := load_receipt(places, name)) else 0)
            raise DatasetError(
                f"the import of {name} gives another version than is pinned ({pinned_digest(places, name)})",
                items=differences,
                hint=f"people withdrew since: mlops erasure run {name}" if withdrawn else meant,
            )
        progress(f"storing {sum(len(build.members) for build in builds)} objects")
        dvc_digest = keep_builds(places, builds)
        finished = replace(
            receipt,
            dvc_digest=dvc_digest,
            rows_in_train_and_test=builds[0].rows_in_train_and_test,
            rows_refused=builds[0].rows_refused,
            leaks=builds[0].leaks,
        )
        save_receipt(places, name, finished)
        if tombstones and isinstance(recipe.source, WheelSource):
            list(drop_downloads(places, recipe.source))  # the rows of withdrawn people stand in them
        return ImportOutcome(
            version=load_version_of(load_locations(places).object_urls, name, dvc_digest=dvc_digest),
            is_unchanged=False,
            differences=differences,
            rows_in_train_and_test=finished.rows_in_train_and_test,
            rows_refused=finished.rows_refused,
            leaks=finished.leaks,
            source_digest=receipt.source,
        )


def _find_present(places: Places, name: str, receipt: Receipt) -> ImportOutcome | None:
    """The pinned version, when it came from the same inputs and lies whole in every place."""
    last = load_receipt(places, name)
    if last is None or not last.has_same_inputs(receipt) or last.dvc_digest != pinned_digest(places, name):
        return None
    version = find_present_version(places, name)
    if version is None:
        return None
    return ImportOutcome(
        version=version,
        is_unchanged=True,
        differences=(),
        rows_in_train_and_test=last.rows_in_train_and_test,
        rows_refused=last.rows_refused,
        leaks=last.leaks,
        source_digest=receipt.source,
    )


def _find_differences(places: Places, builds: Sequence[Build]) -> tuple[str, ...]:
    """How builds differ from what the working tree pins; nothing pinned is no difference."""
    pinned = dict(load_part_pins(places, builds[0].part.dataset))
    if not pinned:
        return ()
    lines: list[str] = []
    urls = load_locations(places).object_urls
    for build in builds:
        pin = pinned.pop(build.part, None)
        prefix = f"{build.part.name}: " if build.part.name else ""
        if pin is None:
            lines.append(f"{build.part.folder} is new")
        elif pin.dvc_digest != build.dvc_digest:
            found = describe_differences(build.part, pin, manifest=build.manifest, urls=urls)
            lines.extend(prefix + line for line in found)
    lines.extend(f"{part.folder} is gone" for part in pinned)
    return tuple(lines)
