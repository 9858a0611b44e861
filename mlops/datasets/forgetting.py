"""Forgetting people: their rows leave the pinned version, and the old shards leave every store.

Two steps, so that a new version can be trained and served before the old one goes: `forget_subjects` writes tombstones
and rewrites shards; `purge_shards` removes the old objects from cache, remotes, workspace, node cache and index. Every
other shard of old versions stays readable. Leaves to others: when and on whose request (mlops/erasure).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlops.clock import DAY_US, SECOND_US
from mlops.datasets.dvc_store import DvcStore
from mlops.datasets.history import list_versions
from mlops.datasets.manifest import Shard
from mlops.datasets.node_cache import cached_file
from mlops.datasets.objects import verify_file
from mlops.datasets.parts import split_digest
from mlops.datasets.rewriting import Rewrite, rewrite_shards
from mlops.datasets.schema import SUBJECT_COLUMN
from mlops.datasets.subject_index import Holding, find_subject, index_file, save_subjects
from mlops.datasets.subjects import HASH_BYTES
from mlops.datasets.tombstones import add_purged, add_tombstones, load_purged
from mlops.datasets.version import DatasetVersion, load_dataset_version, read_shard
from mlops.errors import DatasetError
from mlops.places import Places


@dataclass(frozen=True)
class Forgetting:
    """What left the pinned version."""

    rewrite: Rewrite | None
    """None when nobody of them was in the pinned version."""
    rows_removed: int
    subjects: int


@dataclass(frozen=True)
class PurgeReceipt:
    """One object that is gone."""

    md5: str
    removed_from: tuple[str, ...]
    """Stores, files and caches that had it."""
    is_gone: bool
    """Checked after the removal: every store of the project was reached, and none has it."""
    reason: str = ""
    """Why it is not known to be gone."""


def forget_subjects(places: Places, name: str, subjects: Iterable[bytes]) -> Forgetting:
    """Write tombstones and take people's rows out of the pinned version; old objects stay until `purge_shards`.

    Doing it again changes nothing: the version is the one an import without these people would make.

    Args:
        places: The project.
        name: Of the dataset.
        subjects: Keyed hashes, 32 bytes each.

    Raises:
        DatasetError: A shard is missing or changed, or a store cannot be written.
    """
    wanted = sorted(set(subjects))
    add_tombstones(places, name, wanted)
    version = load_dataset_version(places, name)
    hit = {holding.shard.relpath: holding.shard for one in wanted for holding in find_subject(places, version, one)}
    leaving = pa.array(wanted, pa.binary(HASH_BYTES))
    before = {path: read_shard(version, shard) for path, shard in sorted(hit.items())}
    changes = {
        path: rows.filter(pc.invert(pc.is_in(rows.column(SUBJECT_COLUMN), value_set=leaving)))
        for path, rows in before.items()
    }
    removed = sum(rows.num_rows - changes[path].num_rows for path, rows in before.items())
    rewrite = rewrite_shards(places, version, changes, before=before) if changes else None
    for _, successor in rewrite.replaced if rewrite is not None else ():
        if successor is not None:
            save_subjects(places, successor, changes[successor.relpath])
    return Forgetting(rewrite=rewrite, rows_removed=removed, subjects=len(wanted))


def find_holdings(places: Places, name: str, subject: bytes) -> tuple[Holding, ...]:
    """Every shard of every known version that holds a person; shards that were purged hold nobody.

    Raises:
        DatasetError: A shard in question is missing without having been purged, or changed.
    """
    purged = load_purged(places, name)
    found: list[Holding] = []
    for version in list_versions(places, name):
        kept = tuple(shard for shard in version.manifest.shards if shard.md5 not in purged)
        found.extend(find_subject(places, _with_shards(version, kept), subject))
    return tuple(found)


def purge_shards(places: Places, name: str, shards: Iterable[Shard]) -> tuple[PurgeReceipt, ...]:
    """Remove shard objects from everywhere this project reaches, and remember that they must not come back.

    A store that is down is told in the receipt; doing it again when it is back ends it.

    Raises:
        DatasetError: A shard belongs to the pinned version.
    """
    version = load_dataset_version(places, name)
    pinned = {shard.md5 for shard in version.manifest.shards}
    wanted = {shard.md5: shard for shard in shards}
    live = sorted(pinned & wanted.keys())
    if live:
        raise DatasetError(
            f"{len(live)} objects belong to the pinned version of dataset {name}; nothing was purged",
            items=tuple(f"{wanted[md5].relpath}: {md5}" for md5 in live),
            hint="forget the people in them first",
        )
    add_purged(places, name, wanted)
    store = DvcStore(places)
    witness = split_digest(name, version.dvc_digest)[0][1]
    receipts = []
    for md5, shard in sorted(wanted.items()):
        removal = store.delete(md5, witness=witness)
        removed = list(removal.removed_from)
        for file in (index_file(places, shard), *_decoded(places, shard), *_in_workspace(places, name, shard)):
            if file.exists():
                file.unlink()
                removed.append(file.relative_to(places.root).as_posix())
        reason = "; ".join(removal.failures)
        receipts.append(PurgeReceipt(md5=md5, removed_from=tuple(removed), is_gone=not reason, reason=reason))
    return tuple(receipts)


def sweep_returned(places: Places, name: str) -> tuple[str, ...]:
    """Remove purged objects that came back, by a push from a stale clone for instance; never what is pinned now.

    Returns:
        One line for each that was swept, or could not be.

    Raises:
        DatasetError: A manifest of the pinned version is missing.
    """
    purged = load_purged(places, name)
    if not purged:
        return ()
    version = load_dataset_version(places, name)
    store, lines = DvcStore(places), []
    witness = split_digest(name, version.dvc_digest)[0][1]
    for md5 in sorted(purged - {shard.md5 for shard in version.manifest.shards}):
        removal = store.delete(md5, witness=witness)
        if removal.removed_from:
            lines.append(f"{md5} from {', '.join(removal.removed_from)}")
        lines += [f"{md5} not swept: {failure}" for failure in removal.failures]
    return tuple(lines)


def find_expired(version: DatasetVersion, *, now_us: int) -> frozenset[bytes]:
    """Keyed hashes of people with a row past the retention that `dataset.yaml` states.

    Raises:
        DatasetError: A shard is missing or changed.
    """
    schema = version.schema
    if schema.retention_days is None or schema.time is None:
        return frozenset()
    limit = (now_us - schema.retention_days * DAY_US) / SECOND_US
    found: set[bytes] = set()
    for shard in version.manifest.shards:
        rows = read_shard(version, shard, columns=[schema.time.name, SUBJECT_COLUMN])
        expired = rows.filter(pc.less(pc.cast(rows.column(schema.time.name), pa.float64()), limit))
        found.update(expired.column(SUBJECT_COLUMN).to_pylist())
    return frozenset(found)


def _decoded(places: Places, shard: Shard) -> list[Path]:
    """Decoded copies of a shard in node caches below the project's cache folder."""
    return [cached_file(folder, shard) for folder in places.cache.glob("*") if folder.is_dir()]


def _in_workspace(places: Places, name: str, shard: Shard) -> list[Path]:
    """The checked-out file, where it is still this shard and not the one that replaced it."""
    path = places.dataset_folder(name) / shard.relpath
    return [path] if path.is_file() and not verify_file(path, md5=shard.md5, size=shard.bytes) else []


def _with_shards(version: DatasetVersion, shards: tuple[Shard, ...]) -> DatasetVersion:
    return replace(version, manifest=replace(version.manifest, shards=shards))
