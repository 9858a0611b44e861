"""The manifest: the sorted list of a dataset version's shards with sizes, rows and sha256, which DVC's `.dir` lacks.

Its digest is the dataset version. It lies as `manifest.json` in the dataset folder, beside `dataset.yaml`.
Leaves to others: writing shards (importing), moving them (dvc_store), and where they lie (version).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from mlops.errors import DatasetError
from mlops.provenance.digest import DIGEST_PATTERN, canonical_json, digest_bytes, digest_json

MANIFEST_FILE = "manifest.json"
SCHEMA_FILE = "dataset.yaml"
_HEX = {"md5": re.compile(r"[0-9a-f]{32}"), "sha256": re.compile(r"[0-9a-f]{64}")}


@dataclass(frozen=True)
class Shard:
    """One parquet file: rows of one isolation group, and so of one split."""

    relpath: str
    """POSIX path below the dataset folder: `train/g00017-000.parquet`."""
    md5: str
    """32 hex digits; the object's name in DVC stores."""
    sha256: str
    """64 hex digits; what readers verify, since md5 protects against nobody."""
    bytes: int
    rows: int
    group: int
    split: str


@dataclass(frozen=True)
class Manifest:
    """All shards of one dataset version, sorted by relpath."""

    dataset: str
    schema_sha256: str
    """64 hex digits of the schema's digest."""
    shards: tuple[Shard, ...]
    columns: tuple[tuple[str, str], ...] = ()
    """(column, 64 hex digits of a digest of its values): says which column differs between two imports."""
    writer: str = ""
    """What wrote the parquet files; explains equal values in different bytes."""

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON: the dataset version."""
        return digest_bytes(render_manifest(self))

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of splits that have shards, sorted."""
        return tuple(sorted({shard.split for shard in self.shards}))

    def shards_of(self, split: str) -> tuple[Shard, ...]:
        """Shards of one split, in manifest order.

        Raises:
            DatasetError: The version has no such split.
        """
        found = tuple(shard for shard in self.shards if shard.split == split)
        if not found:
            raise DatasetError(
                f"dataset {self.dataset} has no split {split!r}", hint=f"its splits: {', '.join(self.splits) or 'none'}"
            )
        return found


def digest_shards(shards: Sequence[Shard]) -> str:
    """`sha256:…` of some shards' contents and groups, in their order, whatever else the version holds."""
    return digest_json([[shard.split, shard.group, shard.sha256] for shard in shards])


def render_manifest(manifest: Manifest) -> bytes:
    """`manifest.json`: canonical, so its sha256 is the version."""
    return canonical_json(
        {
            "version": 1,
            "dataset": manifest.dataset,
            "schema_sha256": manifest.schema_sha256,
            "writer": manifest.writer,
            "columns": [list(pair) for pair in manifest.columns],
            "shards": [asdict(shard) for shard in manifest.shards],
        }
    )


def parse_manifest(content: bytes, *, source: str) -> Manifest:
    """Read a manifest and refuse one that is not exactly as we write it.

    Raises:
        DatasetError: Not JSON, wrong version, paths that climb, wrong digests, wrong order.
    """
    try:
        parsed = json.loads(content)
        if parsed["version"] != 1:
            raise ValueError(f"version {parsed['version']}, known is 1")
        manifest = Manifest(
            dataset=str(parsed["dataset"]),
            schema_sha256=parsed["schema_sha256"],
            shards=tuple(_parse_shard(entry) for entry in parsed["shards"]),
            columns=tuple((str(name), str(value)) for name, value in parsed["columns"]),
            writer=str(parsed["writer"]),
        )
        paths = [shard.relpath for shard in manifest.shards]
        if paths != sorted(set(paths)):
            raise ValueError("shards are not sorted, or one is listed twice")
        if render_manifest(manifest) != content:
            raise ValueError("not in canonical form")
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{source} is not a manifest: {error}", hint="import the dataset again, or pull it from a remote"
        ) from error
    return manifest


def merge_manifests(parts: tuple[tuple[str, Manifest], ...]) -> Manifest:
    """One manifest of all partitions: paths below each partition's name, column digests added up."""
    sums: dict[str, int] = {}
    for _, manifest in parts:
        for column, digest in manifest.columns:
            sums[column] = (sums.get(column, 0) + int(digest, 16)) % 2**256
    first = parts[0][1]
    return Manifest(
        dataset=first.dataset,
        schema_sha256=first.schema_sha256,
        shards=tuple(
            replace(shard, relpath=f"{name}/{shard.relpath}") for name, manifest in parts for shard in manifest.shards
        ),
        columns=tuple((column, f"{number:064x}") for column, number in sums.items()),
        writer=first.writer,
    )


def verify_relpath(relpath: str) -> str:
    """The path itself, when it stays inside the dataset folder.

    Raises:
        ValueError: Absolute, climbing, or not in plain form.
    """
    path = PurePosixPath(relpath)
    if path.is_absolute() or ".." in path.parts or str(path) != relpath or "\\" in relpath or relpath in ("", "."):
        raise ValueError(f"path {relpath!r} leaves the dataset folder or is not plain")
    return relpath


def is_digest(text: str) -> bool:
    """Whether `text` has the form `sha256:<64 hex>`."""
    return DIGEST_PATTERN.fullmatch(text) is not None


def _parse_shard(entry: Any) -> Shard:
    shard = Shard(**entry)
    verify_relpath(shard.relpath)
    for name, pattern in _HEX.items():
        if not pattern.fullmatch(getattr(shard, name)):
            raise ValueError(f"{shard.relpath}: {name} is not a digest")
    if min(shard.bytes, shard.rows, shard.group) < 0:
        raise ValueError(f"{shard.relpath}: negative number")
    return shard
