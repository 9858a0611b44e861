"""Parquet shards: rows of one isolation group, sorted by keyed hash; the same rows give the same bytes anywhere.

Leaves to others: typing rows (typing_rows.py), bringing a group's rows together (group_spool.py) and moving shards
(dvc_store.py).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlops.datasets.manifest import Shard
from mlops.datasets.schema import SUBJECT_COLUMN
from mlops.datasets.subjects import HASH_BYTES

ROW_GROUP_ROWS = 16_384
SHARD_BYTES = 64 << 20
"""Decoded size of a shard at most, whatever `rows_per_shard` says: a shard is held a few times over while written."""


def render_shard(rows: pa.Table) -> bytes:
    """Parquet bytes of rows, with settings that never depend on machine, threads or time.

    Statistics are off: minima and maxima of personal columns would survive in the footer.
    """
    sink = io.BytesIO()
    pq.write_table(
        rows.replace_schema_metadata(None).combine_chunks(),
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        write_statistics=False,
        row_group_size=ROW_GROUP_ROWS,
        store_schema=False,
        write_page_index=False,
    )
    return sink.getvalue()


def writer_name() -> str:
    """What the parquet footers say wrote them; another writer gives other bytes for equal rows."""
    return f"parquet-cpp-arrow version {pa.cpp_version}"


def describe_shard(content: bytes, *, relpath: str, rows: int, group: int, split: str) -> Shard:
    """The manifest entry of a shard's bytes."""
    return Shard(
        relpath=relpath,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        rows=rows,
        group=group,
        split=split,
    )


def shard_relpath(split: str, *, group: int, part: int) -> str:
    """`train/g00017-000.parquet`: sorts by split, group and part."""
    return f"{split}/g{group:06d}-{part:03d}.parquet"


def sort_rows(rows: pa.Table) -> pa.Table:
    """By keyed hash; rows of one subject keep their order. Raw order of people does not matter to the bytes."""
    words = subject_bytes(rows).view(">u8").reshape(rows.num_rows, HASH_BYTES // 8)
    if _is_sorted(words):
        return rows
    order = np.lexsort(tuple(words[:, column] for column in range(words.shape[1] - 1, -1, -1)))
    return rows.take(pa.array(order))


def subject_bytes(rows: pa.Table) -> npt.NDArray[np.uint8]:
    """The keyed hash of each row, `[N, 32]`, without a copy where the column lies in one piece."""
    subjects = rows.column(SUBJECT_COLUMN).combine_chunks()
    width = subjects.type.byte_width
    raw = np.frombuffer(subjects.buffers()[1], dtype=np.uint8)
    return raw[subjects.offset * width : (subjects.offset + len(subjects)) * width].reshape(-1, width)


def cut_rows(pieces: Iterable[pa.Table], *, size: int) -> Iterator[pa.Table]:
    """The rows of `pieces`, in their order, in tables of `size` rows, at most `SHARD_BYTES`; the last has the rest."""
    waiting: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        if piece.num_rows:
            size = min(size, max(1, SHARD_BYTES // row_bytes(piece.schema)))
        waiting.append(piece)
        rows += piece.num_rows
        if rows >= size:
            joined = pa.concat_tables(waiting)
            whole = rows - rows % size
            yield from (joined.slice(start, size) for start in range(0, whole, size))
            waiting, rows = [joined.slice(whole)], rows - whole
    if rows:
        yield pa.concat_tables(waiting)


def row_bytes(schema: pa.Schema) -> int:
    """Bytes of one decoded row of a shard: every type in it has a fixed width."""
    lists = [it.type for it in schema if pa.types.is_fixed_size_list(it.type)]
    plain = [it.type for it in schema if not pa.types.is_fixed_size_list(it.type)]
    return (sum(it.bit_width for it in plain) + sum(it.list_size * it.value_type.bit_width for it in lists)) // 8


def first_words(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of each row's keyed hash: as a number."""
    return np.ascontiguousarray(subject_bytes(rows)[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def groups_of_rows(rows: pa.Table, *, groups: int) -> npt.NDArray[np.int64]:
    """Isolation group of each row (`mlops.datasets.subjects.group_of`, for many)."""
    return (first_words(rows) % np.uint64(groups)).astype(np.int64)


def _is_sorted(words: npt.NDArray[np.uint64]) -> bool:
    """Whether rows of big-endian words ascend, the first word counting most."""
    tied = np.ones(max(len(words) - 1, 0), dtype=np.bool_)
    for column in range(words.shape[1]):
        values = words[:, column]
        if bool((tied & (values[1:] < values[:-1])).any()):
            return False
        tied &= values[1:] == values[:-1]
    return True


def digest_columns(rows: pa.Table, *, relpath: str) -> dict[str, int]:
    """For each column, sha256 of its values in one shard as a number.

    A version's column digest is the sum of its shards' mod 2^256, so changing one shard needs no other shard. It says
    which column differs between two imports; what protects the bytes is each shard's own sha256.
    """
    found = {}
    for name in rows.column_names:
        digest = hashlib.sha256(f"{relpath}\n{rows.num_rows}\n".encode())
        column = rows.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        if pa.types.is_fixed_size_binary(column.type):
            width = column.type.byte_width
            digest.update(column.buffers()[1][column.offset * width : (column.offset + len(column)) * width])
        else:
            digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).data)
        found[name] = int.from_bytes(digest.digest(), "big")
    return found


class ColumnSums:
    """Column digests of a version: sums over its shards."""

    def __init__(self, columns: tuple[tuple[str, str], ...] = ()) -> None:
        self._sums = {name: int(digest, 16) for name, digest in columns}

    def add(self, rows: pa.Table, *, relpath: str) -> None:
        """Count a shard in."""
        for name, number in digest_columns(rows, relpath=relpath).items():
            self._sums[name] = (self._sums.get(name, 0) + number) % 2**256

    def remove(self, rows: pa.Table, *, relpath: str) -> None:
        """Count a shard out."""
        for name, number in digest_columns(rows, relpath=relpath).items():
            self._sums[name] = (self._sums.get(name, 0) - number) % 2**256

    def finish(self) -> tuple[tuple[str, str], ...]:
        """(column, 64 hex digits)."""
        return tuple((name, f"{number:064x}") for name, number in self._sums.items())
