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
import pyarrow.compute as pc

from mlops.datasets.formats import read_blocks
from mlops.datasets.leaks import LeakWatch
from mlops.datasets.manifest import MANIFEST_FILE, SCHEMA_FILE, Manifest, Shard, render_manifest
from mlops.datasets.parts import Part, plan_parts
from mlops.datasets.pins import render_directory
from mlops.datasets.recipe import Recipe
from mlops.datasets.schema import SUBJECT_COLUMN, Schema, render_schema
from mlops.datasets.shards import (
    ColumnSums,
    GroupSpool,
    describe_shard,
    render_shard,
    shard_relpath,
    writer_name,
)
from mlops.datasets.sources import FetchedFile
from mlops.datasets.subjects import HASH_BYTES
from mlops.datasets.typing_rows import Violations, type_block
from mlops.errors import DatasetError
from mlops.provenance.digest import hex_of

_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Build:
    """A version built aside."""

    part: Part
    folder: Path
    manifest: Manifest
    schema: Schema
    members: dict[str, str]
    """relpath to md5, with `manifest.json` and `dataset.yaml`."""
    size: int
    """Bytes of all members."""
    rows_in_train_and_test: int
    """Test rows whose values all stand in a train row too."""
    rows_refused: int
    """Rows of withdrawn people that were kept out."""
    leaks: tuple[str, ...]
    """Features that alone give the label away, one line each."""

    @property
    def directory(self) -> bytes:
        """The `.dir` object."""
        return render_directory(self.members)

    @property
    def dvc_digest(self) -> str:
        """`<md5>.dir`"""
        return f"{_md5(self.directory)}.dir"


def build_version(
    name: str,
    recipe: Recipe,
    *,
    fetched: tuple[FetchedFile, ...],
    subject_key: bytes,
    folder: Path,
    tombstones: frozenset[bytes] = frozenset(),
) -> tuple[Build, ...]:
    """Type, check, group and write all rows, one build for each part, below `folder`; nothing else is touched.

    Raises:
        DatasetError: Rows that are not as the recipe says: all violations, by column.
    """
    schema = recipe.to_schema(name)
    hashes: dict[str, list[npt.NDArray[np.uint64]]] = {}
    watch = LeakWatch(schema)
    built: list[tuple[Part, Path, Manifest]] = []
    with GroupSpool(folder / "spool", schema) as spool:
        refused = _spool_rows(spool, recipe, fetched=fetched, key=subject_key, tombstones=tombstones)
        for part, groups in plan_parts(name, groups=schema.groups, partitions=recipe.partitions):
            target = folder / (part.name or "version")
            target.mkdir(parents=True)
            manifest = _build_part(target, spool, recipe, schema=schema, groups=groups, hashes=hashes, watch=watch)
            built.append((part, target, manifest))
    overlap = _count_overlap(hashes)
    return tuple(
        finish_build(target, manifest, schema, part=part, overlap=overlap, refused=refused, leaks=watch.finish())
        for part, target, manifest in built
    )


def _build_part(
    folder: Path,
    spool: GroupSpool,
    recipe: Recipe,
    *,
    schema: Schema,
    groups: range,
    hashes: dict[str, list[npt.NDArray[np.uint64]]],
    watch: LeakWatch,
) -> Manifest:
    """Write the shards of some groups; adds row hashes by split, and counts for the leak report."""
    sums = ColumnSums()
    shards: list[Shard] = []
    for group, rows in spool.iterate_groups(groups):
        split = schema.split_of_group(group)
        shards.extend(write_group(folder, rows, split=split, group=group, size=recipe.rows_per_shard, sums=sums))
        hashes.setdefault(split, []).append(hash_rows(rows))
        watch.add(rows)
    return Manifest(
        dataset=schema.name,
        schema_sha256=hex_of(schema.digest),
        shards=tuple(sorted(shards, key=lambda shard: shard.relpath)),
        columns=sums.finish(),
        writer=writer_name(),
    )


def finish_build(
    folder: Path,
    manifest: Manifest,
    schema: Schema,
    *,
    part: Part,
    overlap: int,
    refused: int = 0,
    leaks: tuple[str, ...] = (),
) -> Build:
    """Write manifest and `dataset.yaml` beside the shards."""
    written = {MANIFEST_FILE: render_manifest(manifest), SCHEMA_FILE: render_schema(schema).encode()}
    for path, content in written.items():
        (folder / path).write_bytes(content)
    members = {shard.relpath: shard.md5 for shard in manifest.shards}
    return Build(
        part=part,
        folder=folder,
        manifest=manifest,
        schema=schema,
        members=members | {path: _md5(content) for path, content in written.items()},
        size=manifest.bytes + sum(map(len, written.values())),
        rows_in_train_and_test=overlap,
        rows_refused=refused,
        leaks=leaks,
    )


def write_group(folder: Path, rows: pa.Table, *, split: str, group: int, size: int, sums: ColumnSums) -> list[Shard]:
    """The shards of one isolation group, on disk; counted into the column digests."""
    shards = []
    for part, start in enumerate(range(0, rows.num_rows, size)):
        piece = rows.slice(start, size)
        content = render_shard(piece)
        relpath = shard_relpath(split, group=group, part=part)
        sums.add(piece, relpath=relpath)
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


def _spool_rows(
    spool: GroupSpool,
    recipe: Recipe,
    *,
    fetched: Iterable[FetchedFile],
    key: bytes,
    tombstones: frozenset[bytes],
) -> int:
    """Every allowed row into the spool; returns how many rows of withdrawn people were kept out."""
    violations = Violations()
    withdrawn = pa.array(sorted(tombstones), pa.binary(HASH_BYTES))
    rows = refused = 0
    for file in fetched:
        for block in read_blocks(file, recipe):
            typed = type_block(block, recipe, key=key, violations=violations)
            rows += typed.num_rows
            if not violations.counts:
                allowed = typed.filter(pc.invert(pc.is_in(typed.column(SUBJECT_COLUMN), value_set=withdrawn)))
                refused += typed.num_rows - allowed.num_rows
                spool.append(allowed)
    if violations.counts:
        total = sum(violations.counts.values())
        raise DatasetError(
            f"{total} values in {rows} rows are not what the recipe allows; nothing was imported",
            items=violations.render_lines(),
            hint="mend the raw files or the recipe; a missing value needs a category or a `fill` of its own",
        )
    if rows == refused:
        raise DatasetError("the raw files hold no rows", hint="an empty file is never an empty dataset")
    return refused


def _count_overlap(hashes: dict[str, list[npt.NDArray[np.uint64]]]) -> int:
    if "train" not in hashes or "test" not in hashes:
        return 0
    return int(np.isin(np.concatenate(hashes["test"]), np.concatenate(hashes["train"])).sum())


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
