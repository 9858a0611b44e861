"""What differs between two versions: by shard and column where both manifests are at hand, else by column.

Leaves to others: building and reading versions.
"""

from __future__ import annotations

from mlops.datasets.manifest import Manifest
from mlops.datasets.parts import Part
from mlops.datasets.pins import Pin
from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.errors import DatasetError

SHOWN = 20


def describe_differences(part: Part, pin: Pin, *, manifest: Manifest, urls: tuple[str, ...]) -> tuple[str, ...]:
    """How a new manifest differs from what is pinned, one line each.

    Args:
        part: Of which dataset.
        pin: What its DVC file says.
        manifest: The new version.
        urls: Stores where the pinned version's manifest may still be.
    """
    lines: list[str] = []
    if pin.manifest == manifest.digest:
        lines.append("the shards are equal; dataset.yaml or its layout differs")
    if pin.schema != manifest.schema_sha256[:16]:
        lines.append("dataset.yaml: columns, ranges, splits or descriptions differ")
    if pin.rows != manifest.rows:
        lines.append(f"rows: {pin.rows} pinned, {manifest.rows} imported")
    new = {name: digest[:16] for name, digest in manifest.columns}
    for name in sorted(pin.columns.keys() | new.keys()):
        old_digest, new_digest = pin.columns.get(name), new.get(name)
        if old_digest != new_digest:
            word = "is new" if old_digest is None else "is gone" if new_digest is None else "has other values"
            lines.append(f"column {name}: {word}")
    if pin.writer != manifest.writer:
        lines.append(
            f"writer: {pin.writer or 'unknown'} pinned, {manifest.writer} here; the locked pyarrow gives equal bytes"
        )
    try:
        pinned = load_version_of(urls, part.dataset, dvc_digest=pin.dvc_digest).manifest
    except DatasetError:
        lines.append("shards: the pinned manifest is in no store, so they cannot be compared one by one")
        return tuple(lines)
    return (*lines, *_compare_shards(pinned, manifest))


def compare_versions(before: DatasetVersion, after: DatasetVersion) -> tuple[str, ...]:
    """How two versions differ: schema, columns and shards, one line each."""
    lines = []
    if before.schema != after.schema:
        lines.append("dataset.yaml: the schemas differ")
    old, new = dict(before.manifest.columns), dict(after.manifest.columns)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            word = "is new" if name not in old else "is gone" if name not in new else "has other values"
            lines.append(f"column {name}: {word}")
    return (*lines, *_compare_shards(before.manifest, after.manifest))


def _compare_shards(old: Manifest, new: Manifest) -> list[str]:
    before = {shard.relpath: shard for shard in old.shards}
    after = {shard.relpath: shard for shard in new.shards}
    lines = []
    for path in sorted(before.keys() | after.keys()):
        first, second = before.get(path), after.get(path)
        if first == second:
            continue
        if first is None or second is None:
            lines.append(f"shard {path}: {'is new' if first is None else 'is gone'}")
        else:
            lines.append(f"shard {path}: {first.rows} rows became {second.rows}, {first.md5} became {second.md5}")
    if len(lines) > SHOWN:
        lines = [*lines[:SHOWN], f"and {len(lines) - SHOWN} more shards"]
    return lines
