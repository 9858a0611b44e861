"""Changing shards of a version without a checkout of the rest: only changed objects are read, hashed and moved.

Reads the `.dir` and the manifest from cache or remote, adds the new shards, the new manifest and the new `.dir`, and
rewrites the pin. Leaves to others: which rows change (forgetting.py, people).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from mlops.datasets.building import Build, finish_build
from mlops.datasets.dvc_store import DvcStore
from mlops.datasets.keeping import pin_of
from mlops.datasets.locking import writing_datasets
from mlops.datasets.manifest import MANIFEST_FILE, Manifest, Shard
from mlops.datasets.parts import Part, load_part_pins, split_digest
from mlops.datasets.pins import write_pin
from mlops.datasets.shards import ColumnSums, describe_shard, render_shard, sort_rows
from mlops.datasets.verifying import pinned_digest, require_part
from mlops.datasets.version import DatasetVersion, load_version_of, read_shard
from mlops.errors import DatasetError
from mlops.files import write_atomically
from mlops.places import Places


@dataclass(frozen=True)
class Rewrite:
    """Two versions and the shards between them."""

    before: DatasetVersion
    after: DatasetVersion
    replaced: tuple[tuple[Shard, Shard | None], ...]
    """Old shard and its successor; None when no row was left."""
    moved_objects: int
    """Objects that were sent to each remote."""


@dataclass(frozen=True)
class _Change:
    """New rows of one shard."""

    rows: pa.Table
    before: pa.Table | None
    """Its old rows, where they are already read."""


def rewrite_shards(
    places: Places,
    version: DatasetVersion,
    changes: Mapping[str, pa.Table],
    *,
    before: Mapping[str, pa.Table] | None = None,
) -> Rewrite:
    """Replace the rows of some shards and pin the new version.

    Args:
        places: The project.
        version: The pinned version.
        changes: Path of a shard in the manifest to its new rows, all columns; no rows drops the shard.
        before: Old rows of shards that the caller has already read with `read_shard`; the others are read here.

    Raises:
        DatasetError: The pin moved meanwhile, a path is no shard, rows of another group, a store cannot be written.
    """
    with writing_datasets(places) as scratch:
        if pinned_digest(places, version.name) != version.dvc_digest:
            raise DatasetError(
                f"dataset {version.name} was changed by another command", hint="load the version again and repeat"
            )
        by_part: dict[Part, dict[str, _Change]] = {}
        for path, rows in changes.items():
            part, inner = require_part(version, path)
            by_part.setdefault(part, {})[inner] = _Change(rows, (before or {}).get(path))
        digests = dict(split_digest(version.name, version.dvc_digest))
        replaced: list[tuple[Shard, Shard | None]] = []
        moved = 0
        store = DvcStore(places)
        for part, tables in by_part.items():
            old = load_version_of(version.object_urls, version.name, dvc_digest=digests[part])
            folder = scratch / (part.name or "version")
            build, pairs = _rebuild(folder, old, part, tables)
            moved += _keep_changes(places, store, build, replaced=pairs, old_directory=digests[part])
            prefix = f"{part.name}/" if part.name else ""
            replaced += [
                (_below(prefix, first), None if second is None else _below(prefix, second)) for first, second in pairs
            ]
    after = load_version_of(version.object_urls, version.name, dvc_digest=pinned_digest(places, version.name))
    return Rewrite(before=version, after=after, replaced=tuple(replaced), moved_objects=moved)


def _rebuild(
    folder: Path, old: DatasetVersion, part: Part, changes: Mapping[str, _Change]
) -> tuple[Build, list[tuple[Shard, Shard | None]]]:
    """New shards and manifest of one part, in `folder`."""
    shards = {shard.relpath: shard for shard in old.manifest.shards}
    sums = ColumnSums(old.manifest.columns)
    pairs: list[tuple[Shard, Shard | None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="column-sums") as pool:
        for path, change in changes.items():
            if path not in shards:
                raise DatasetError(f"{path} is no shard of dataset {old.name}")
            shard, rows = shards.pop(path), sort_rows(change.rows)
            counted = pool.submit(_count_change, sums, old, shard, rows=rows, before=change.before)
            successor = _write_shard(folder / path, rows, shard) if rows.num_rows else None  # meanwhile
            counted.result()
            if successor is not None:
                shards[path] = successor
            pairs.append((shard, successor))
    if not shards:
        raise DatasetError(f"{part.folder} would have no rows left", hint="remove the dataset instead")
    manifest = Manifest(
        dataset=old.name,
        schema_sha256=old.manifest.schema_sha256,
        shards=tuple(shards[path] for path in sorted(shards)),
        columns=sums.finish(),
        writer=old.manifest.writer,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return finish_build(folder, manifest, old.schema, part=part, overlap=0), pairs


def _count_change(
    sums: ColumnSums, old: DatasetVersion, shard: Shard, *, rows: pa.Table, before: pa.Table | None
) -> None:
    """Take a shard's old rows out of the column digests and put its new ones in."""
    sums.remove(before if before is not None else read_shard(old, shard), relpath=shard.relpath)
    if rows.num_rows:
        sums.add(rows, relpath=shard.relpath)


def _write_shard(path: Path, rows: pa.Table, shard: Shard) -> Shard:
    content = render_shard(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return describe_shard(content, relpath=shard.relpath, rows=rows.num_rows, group=shard.group, split=shard.split)


def _keep_changes(
    places: Places,
    store: DvcStore,
    build: Build,
    *,
    replaced: list[tuple[Shard, Shard | None]],
    old_directory: str,
) -> int:
    """Store, push, place and pin what changed of one part; returns the number of objects moved."""
    successors = {new.relpath: new.md5 for _, new in replaced if new is not None}
    changed = {**successors, MANIFEST_FILE: build.members[MANIFEST_FILE]}
    directory_file = build.folder.parent / build.dvc_digest
    directory_file.write_bytes(build.directory)
    store.require(old_directory)
    store.give({md5: build.folder / path for path, md5 in changed.items()})
    store.give({build.dvc_digest: directory_file})
    store.push(sorted(set(changed.values())), directory=build.dvc_digest)
    folder = places.root / build.part.folder
    if folder.is_dir():
        for path in changed:
            write_atomically(folder / path, (build.folder / path).read_bytes())
        for old, new in replaced:
            if new is None:
                (folder / old.relpath).unlink(missing_ok=True)
    pin = pin_of(build)
    if dict(load_part_pins(places, build.part.dataset)).get(build.part) != pin:
        write_pin(places.root / build.part.pin_path, pin)
    return len(set(changed.values())) + 1


def _below(prefix: str, shard: Shard) -> Shard:
    return replace(shard, relpath=prefix + shard.relpath)
