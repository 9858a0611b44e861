"""Typed rows on disk by isolation group, between reading raw files and writing shards; memory holds no whole group.

Blocks are spooled to one file per group. A group too large to be sorted at once is spooled again by ranges of the keyed
hash, which are sorted one after the other: together they are the sorted group.
Leaves to others: typed rows (typing_rows.py), shards (shards.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops.datasets.schema import Schema
from mlops.datasets.shards import first_words, groups_of_rows, sort_rows
from mlops.datasets.typing_rows import arrow_schema

MAXIMUM_OPEN_SPOOLS = 256
READ_BYTES = 8 << 20
SORT_BYTES = 64 << 20
"""Rows that are sorted at once; sorting holds them about three times over."""
_RANGE_BITS = 8
"""A large group is cut into at most 256 ranges; one of more than 16 GB needs more memory, or more `groups`."""


class GroupSpool:
    """Rows by isolation group.

    Args:
        folder: For the spool files.
        schema: Of the rows.
        open_files: At most at once.
        sort_bytes: A group with more is sorted in ranges; None never does so.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        *,
        open_files: int = MAXIMUM_OPEN_SPOOLS,
        sort_bytes: int | None = SORT_BYTES,
    ) -> None:
        self._folder = folder
        self._open_files = open_files
        self._sort_bytes = sort_bytes
        self._schema = schema
        self._arrow_schema = arrow_schema(schema.columns)
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._parts: dict[int, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> GroupSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_writers()

    def append(self, rows: pa.Table) -> None:
        """Add rows, in raw order."""
        if rows.num_rows:
            self._scatter(rows, groups_of_rows(rows, groups=self._schema.groups))

    def iterate_groups(self, groups: range) -> Iterator[tuple[int, Iterator[pa.Table]]]:
        """Every one of `groups` that has rows, ascending, with its rows sorted by keyed hash, in pieces."""
        self._close_writers()
        for group in sorted(group for group in self._parts if group in groups):
            yield group, self._iterate_sorted(group)

    def _iterate_sorted(self, group: int) -> Iterator[pa.Table]:
        size = sum(self._path(group, part).stat().st_size for part in range(self._parts[group]))
        if self._sort_bytes is None or size <= self._sort_bytes:
            yield sort_rows(pa.concat_tables(self._read(group)))
            return
        bits = min(_RANGE_BITS, (size // self._sort_bytes).bit_length())
        with GroupSpool(self._folder / f"g{group}", self._schema, sort_bytes=None) as ranges:
            for rows in self._read(group):
                ranges._scatter(rows, (first_words(rows) >> np.uint64(64 - bits)).astype(np.int64))
            for _, pieces in ranges.iterate_groups(range(1 << bits)):
                yield from pieces

    def _scatter(self, rows: pa.Table, keys: npt.NDArray[np.int64]) -> None:
        """Each row to the file of its key."""
        order = np.argsort(keys, kind="stable")
        ordered, sorted_keys = rows.take(pa.array(order)), keys[order]
        starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            self._writer(int(sorted_keys[start])).write_table(ordered.slice(start, end - start))

    def _read(self, key: int) -> Iterator[pa.Table]:
        """Rows of one key, in raw order, some `READ_BYTES` at a time."""
        batches: list[pa.RecordBatch] = []
        size = 0
        for part in range(self._parts[key]):
            with pa.OSFile(str(self._path(key, part))) as source, pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    batches.append(batch)
                    size += batch.nbytes
                    if size >= READ_BYTES:
                        yield pa.Table.from_batches(batches)
                        batches, size = [], 0
        if batches:
            yield pa.Table.from_batches(batches)

    def _writer(self, key: int) -> pa.ipc.RecordBatchStreamWriter:
        if key not in self._writers:
            if len(self._writers) >= self._open_files:
                self._close_writers()
            part = self._parts.get(key, 0)
            self._parts[key] = part + 1
            self._writers[key] = pa.ipc.new_stream(str(self._path(key, part)), self._arrow_schema)
        return self._writers[key]

    def _path(self, key: int, part: int) -> Path:
        return self._folder / f"g{key}-{part}.arrows"

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
