"""Files as a scan sees them: archives opened, tables and tensors decoded, whatever the name says; formats by content.

What looks like a known format and cannot be read is told, never passed over. Leaves to others: where files lie and what
is looked for (scanning.py).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard

SQLITE = b"SQLite format 3\x00"
_DEEPEST = 8
_TENSOR_KINDS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip
_FAULTS = (
    OSError, EOFError, ValueError, KeyError, IndexError, struct.error, zipfile.BadZipFile, tarfile.TarError,
    lzma.LZMAError, zstandard.ZstdError, pa.ArrowException, sqlite3.Error, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """Something that cannot be opened any further."""

    place: str
    """Path, then the way inside: `layer!models/income/model.onnx`."""
    content: bytes | np.ndarray | pa.ChunkedArray
    """Bytes to be searched, or the values of a tensor or a column."""
    is_own: bool = False
    """Whether it is one of erasure's own records, which name people by keyed hash on purpose."""


@dataclass(frozen=True)
class Undecoded:
    """Something that a scan could not look into."""

    place: str
    problem: str


Decoded = Iterator[Leaf | Undecoded]


def decode(content: bytes, place: str, *, depth: int = 0) -> Decoded:
    """Everything inside some bytes, and the bytes themselves.

    Args:
        content: Of a file or a member of one.
        place: Where they come from.
        depth: How many archives were opened to get here.
    """
    if not content.startswith(_COMPRESSED):
        yield Leaf(place, content, is_own=content.startswith(SQLITE))  # free pages keep erasure's deleted rows too
    for is_format, opener in _FORMATS:
        if not is_format(content):
            continue
        if depth >= _DEEPEST:
            yield Undecoded(place, f"archives inside each other, more than {_DEEPEST} deep")
            return
        try:
            for inner in opener(content, place):
                if isinstance(inner, tuple):
                    yield from decode(inner[1], inner[0], depth=depth + 1)
                else:
                    yield inner
        except _FAULTS as error:
            yield Undecoded(place, f"{type(error).__name__}: {error}")
        return


def decode_database(path: Path, place: str) -> Decoded:
    """Rows of every table of an SQLite file, its write-ahead log included; values are opened like files."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in tables:
                yield from decode_rows(connection.execute(f'SELECT * FROM "{table.decode()}"'), place, table.decode())  # noqa: S608
    except sqlite3.Error as error:
        yield Undecoded(place, f"{type(error).__name__}: {error}")


def decode_rows(rows: Iterator[tuple[object, ...]] | sqlite3.Cursor, place: str, table: str) -> Decoded:
    """Values of a table's rows; erasure's own tables, events and steps are marked as such."""
    numbers: list[float] = []
    for row in rows:
        texts = [
            value if isinstance(value, bytes) else str(value).encode()
            for value in row
            if isinstance(value, bytes | str)
        ]
        is_own = table.startswith("erasure_") or any(text.startswith(b"erasure") for text in texts[:3])
        for text in texts:
            for found in decode(text, f"{place}!{table}"):
                yield Leaf(found.place, found.content, is_own) if isinstance(found, Leaf) else found
        numbers += [float(value) for value in row if isinstance(value, int | float)]
    if numbers:
        yield Leaf(f"{place}!{table}", np.array(numbers))


def _open_tar(content: bytes, place: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            yield f"{place}!{member.name}", stream.read() if stream else member.linkname.encode()


def _open_zip(content: bytes, place: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            yield f"{place}!{name}", archive.read(name)


def _open_ar(content: bytes, place: str) -> Iterator[tuple[str, bytes]]:
    """Debian packages: 60-byte headers, members padded to even length."""
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        yield f"{place}!{name}", content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _open_parquet(content: bytes, place: str) -> Iterator[Leaf]:
    file = pq.ParquetFile(io.BytesIO(content))
    yield from _columns(file.read(), place)


def _open_arrow(content: bytes, place: str) -> Iterator[Leaf]:
    yield from _columns(pa.ipc.open_file(pa.BufferReader(content)).read_all(), place)


def _columns(table: pa.Table, place: str) -> Iterator[Leaf]:
    for name in table.column_names:
        yield Leaf(f"{place}!{name}", table.column(name))
    for key, value in (table.schema.metadata or {}).items():
        yield Leaf(f"{place}!{key.decode(errors='replace')}", value)


def _open_safetensors(content: bytes, place: str) -> Iterator[Leaf]:
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        kind = _TENSOR_KINDS.get(entry["dtype"])
        if kind is None:
            raise ValueError(f"tensors of type {entry['dtype']} cannot be read")
        yield Leaf(f"{place}!{name}", np.frombuffer(content[8 + length + start : 8 + length + end], dtype=kind))


def _open_numpy(content: bytes, place: str) -> Iterator[Leaf]:
    if b"'|O" in content[:1_024].partition(b"\n")[0]:
        return  # a pickle, which is never loaded; its bytes are searched as they are
    with warnings.catch_warnings(action="ignore"):  # files of Python 2 are read with a complaint
        yield Leaf(f"{place}!values", np.load(io.BytesIO(content), allow_pickle=False))


def _open_sqlite(content: bytes, place: str) -> Iterator[Leaf | Undecoded]:
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as stream:
        stream.write(content)
        stream.flush()
        yield from decode_database(Path(stream.name), place)


def _unpack(unpack: Callable[[bytes], bytes]) -> Callable[[bytes, str], Iterator[tuple[str, bytes]]]:
    def open_it(content: bytes, place: str) -> Iterator[tuple[str, bytes]]:
        yield place, unpack(content)

    return open_it


def _unpack_zstd(content: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True) as stream:
        return stream.read()


def _starts(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(magic)


def _is_safetensors(content: bytes) -> bool:
    length = int.from_bytes(content[:8], "little")
    return (
        2 <= length <= len(content) - 8 and content[8:10] == b'{"' and content[7 + length : 8 + length] in (b"}", b" ")
    )


_GZIP, _ZSTD, _XZ, _BZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh"
_COMPRESSED = (_GZIP, _ZSTD, _XZ)
_FORMATS: tuple[
    tuple[Callable[[bytes], bool], Callable[[bytes, str], Iterator[Leaf | Undecoded | tuple[str, bytes]]]], ...
] = (
    (_starts(_GZIP), _unpack(gzip.decompress)),
    (_starts(_ZSTD), _unpack(_unpack_zstd)),
    (_starts(_XZ), _unpack(lzma.decompress)),
    (lambda content: content.startswith(_BZIP) and content[4:10] == b"1AY&SY", _unpack(bz2.decompress)),
    (_starts(b"PK\x03\x04", b"PK\x05\x06"), _open_zip),
    (_starts(b"!<arch>\n"), _open_ar),
    (_starts(b"PAR1"), _open_parquet),
    (_starts(b"ARROW1\x00\x00"), _open_arrow),
    (_starts(SQLITE), _open_sqlite),
    (_starts(b"\x93NUMPY"), _open_numpy),
    (lambda content: content[257:262] == b"ustar", _open_tar),
    (_is_safetensors, _open_safetensors),
)
"""First match wins; what matches none is searched as bytes."""
