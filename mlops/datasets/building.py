"""Building a version aside: raw files → typed rows → isolation groups → shards → manifest; nobody sees it yet.

Leaves to others: comparing, storing and pinning it (importing.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops.datasets.formats import read_blocks
from mlops.datasets.manifest import MANIFEST_FILE, SCHEMA_FILE, Manifest, Shard, render_manifest
from mlops.datasets.pins import render_directory
from mlops.datasets.recipe import Recipe
from mlops.datasets.schema import SUBJECT_COLUMN, Schema, render_schema
from mlops.datasets.shards import (
    ColumnDigests,
    GroupSpool,
    describe_shard,
    render_shard,
    shard_relpath,
    writer_name,
)
from mlops.datasets.sources import FetchedFile
from mlops.datasets.typing_rows import Violations, type_block
from mlops.errors import DatasetError
from mlops.provenance.digest import hex_of

_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Build:
    """A version built aside."""

    folder: Path
    manifest: Manifest
    schema: Schema
    members: dict[str, str]
    """relpath to md5, with `manifest.json` and `dataset.yaml`."""
    size: int
    """Bytes of all members."""
    rows_in_train_and_test: int
    """Test rows whose values all stand in a train row too."""

    @property
    def directory(self) -> bytes:
        """The `.dir` object."""
        return render_directory(self.members)

    @property
    def dvc_digest(self) -> str:
        """`<md5>.dir`"""
        return f"{_md5(self.directory)}.dir"


def build_version(
    name: str, recipe: Recipe, *, fetched: tuple[FetchedFile, ...], subject_key: bytes, folder: Path
) -> Build:
    """Type, check, group and write all rows below `folder`; nothing else is touched.

    Raises:
        DatasetError: Rows that are not as the recipe says: all violations, by column.
    """
    schema = recipe.to_schema(name)
    target = folder / "version"
    target.mkdir(parents=True)
    digests = ColumnDigests(schema)
    shards: list[Shard] = []
    hashes: dict[str, list[npt.NDArray[np.uint64]]] = {}
    with GroupSpool(folder / "spool", schema) as spool:
        _spool_rows(spool, recipe, fetched=fetched, key=subject_key)
        for split in sorted(schema.splits):
            for group, rows in spool.iterate_groups(*schema.splits[split]):
                shards.extend(write_group(target, rows, split=split, group=group, size=recipe.rows_per_shard))
                digests.update(rows)
                hashes.setdefault(split, []).append(hash_rows(rows))
    manifest = Manifest(
        dataset=name,
        schema_sha256=hex_of(schema.digest),
        shards=tuple(shards),
        columns=digests.finish(),
        writer=writer_name(),
    )
    return finish_build(target, manifest, schema, overlap=_count_overlap(hashes))


def finish_build(folder: Path, manifest: Manifest, schema: Schema, *, overlap: int) -> Build:
    """Write manifest and `dataset.yaml` beside the shards."""
    written = {MANIFEST_FILE: render_manifest(manifest), SCHEMA_FILE: render_schema(schema).encode()}
    for path, content in written.items():
        (folder / path).write_bytes(content)
    members = {shard.relpath: shard.md5 for shard in manifest.shards}
    return Build(
        folder=folder,
        manifest=manifest,
        schema=schema,
        members=members | {path: _md5(content) for path, content in written.items()},
        size=manifest.bytes + sum(map(len, written.values())),
        rows_in_train_and_test=overlap,
    )


def write_group(folder: Path, rows: pa.Table, *, split: str, group: int, size: int) -> list[Shard]:
    """The shards of one isolation group, on disk."""
    shards = []
    for part, start in enumerate(range(0, rows.num_rows, size)):
        piece = rows.slice(start, size)
        content = render_shard(piece)
        relpath = shard_relpath(split, group=group, part=part)
        (folder / relpath).parent.mkdir(parents=True, exist_ok=True)
        (folder / relpath).write_bytes(content)
        shards.append(describe_shard(content, relpath=relpath, rows=piece.num_rows, group=group, split=split))
    return shards


def hash_rows(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """64-bit hash of each row's values without the subject; for counting duplicates, not for proof."""
    result = np.zeros(rows.num_rows, dtype=np.uint64)
    for name in rows.column_names:
        if name == SUBJECT_COLUMN:
            continue
        column = rows.column(name).combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values = np.ascontiguousarray(flat.to_numpy(zero_copy_only=False))
        words = values.view(np.uint32 if values.dtype.itemsize == 4 else np.uint64).astype(np.uint64)
        for word in words.reshape(rows.num_rows, -1).T:
            result = (result ^ word) * _PRIME
            result ^= result >> np.uint64(29)
    return result


def _spool_rows(spool: GroupSpool, recipe: Recipe, *, fetched: Iterable[FetchedFile], key: bytes) -> None:
    violations = Violations()
    rows = 0
    for file in fetched:
        for block in read_blocks(file, recipe):
            typed = type_block(block, recipe, key=key, violations=violations)
            rows += typed.num_rows
            if not violations.counts:
                spool.append(typed)
    if violations.counts:
        total = sum(violations.counts.values())
        raise DatasetError(
            f"{total} values in {rows} rows are not what the recipe allows; nothing was imported",
            items=violations.render_lines(),
            hint="mend the raw files or the recipe; a missing value needs a category or a `fill` of its own",
        )
    if not rows:
        raise DatasetError("the raw files hold no rows", hint="an empty file is never an empty dataset")


def _count_overlap(hashes: dict[str, list[npt.NDArray[np.uint64]]]) -> int:
    if "train" not in hashes or "test" not in hashes:
        return 0
    return int(np.isin(np.concatenate(hashes["test"]), np.concatenate(hashes["train"])).sum())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
