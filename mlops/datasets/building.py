"""Building a version aside: raw files → typed rows → isolation groups → shards → manifest; nobody sees it yet.

Leaves to others: comparing, storing and pinning it (importing.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlops.datasets.formats import read_blocks
from mlops.datasets.group_spool import GroupSpool
from mlops.datasets.leaks import LeakWatch
from mlops.datasets.manifest import MANIFEST_FILE, SCHEMA_FILE, Manifest, Shard, render_manifest
from mlops.datasets.overlap import OverlapCount
from mlops.datasets.parts import Part, plan_parts
from mlops.datasets.pins import render_directory
from mlops.datasets.recipe import Recipe
from mlops.datasets.schema import SUBJECT_COLUMN, Schema, render_schema
from mlops.datasets.shards import (
    ColumnSums,
    cut_rows,
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
    overlap = OverlapCount(folder / "overlap")
    watch = LeakWatch(schema)
    built: list[tuple[Part, Path, Manifest]] = []
    with GroupSpool(folder / "spool", schema) as spool:
        refused = _spool_rows(spool, recipe, fetched=fetched, key=subject_key, tombstones=tombstones)
        for part, groups in plan_parts(name, groups=schema.groups, partitions=recipe.partitions):
            target = folder / (part.name or "version")
            target.mkdir(parents=True)
            manifest = _build_part(target, spool, recipe, schema=schema, groups=groups, overlap=overlap, watch=watch)
            built.append((part, target, manifest))
    repeated = overlap.finish()
    return tuple(
        finish_build(target, manifest, schema, part=part, overlap=repeated, refused=refused, leaks=watch.finish())
        for part, target, manifest in built
    )


def _build_part(
    folder: Path,
    spool: GroupSpool,
    recipe: Recipe,
    *,
    schema: Schema,
    groups: range,
    overlap: OverlapCount,
    watch: LeakWatch,
) -> Manifest:
    """Write the shards of some groups; counts them for the reports of overlap and leaks."""
    sums = ColumnSums()
    shards: list[Shard] = []
    for group, pieces in spool.iterate_groups(groups):
        split = schema.split_of_group(group)
        for part, rows in enumerate(cut_rows(pieces, size=recipe.rows_per_shard)):
            shards.append(write_shard(folder, rows, split=split, group=group, part=part, sums=sums))
            overlap.add(rows, split=split)
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


def write_shard(folder: Path, rows: pa.Table, *, split: str, group: int, part: int, sums: ColumnSums) -> Shard:
    """One shard of an isolation group, on disk; counted into the column digests."""
    content = render_shard(rows)
    relpath = shard_relpath(split, group=group, part=part)
    sums.add(rows, relpath=relpath)
    (folder / relpath).parent.mkdir(parents=True, exist_ok=True)
    (folder / relpath).write_bytes(content)
    return describe_shard(content, relpath=relpath, rows=rows.num_rows, group=group, split=split)


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


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
