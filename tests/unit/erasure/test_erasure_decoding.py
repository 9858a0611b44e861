"""A value is found whatever it is packed in; what cannot be read is told."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from safetensors.numpy import save

from mlops.erasure.decoding import Leaf, Undecoded, decode
from mlops.erasure.scanning import Needles, _judge, _Matcher

SUBJECT = bytes(range(200, 232))
MATCHER = _Matcher(Needles(frozenset({SUBJECT}), frozenset({"48151.62342", "Zaphod", "284582"})))


def packed_tar(content):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("inner.bin")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def packed_zip(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.bin", content)
    return stream.getvalue()


def packed_ar(content):
    header = f"{'data.tar':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
    return b"!<arch>\n" + header + content + b"\n" * (len(content) % 2)


def table(kind, **columns):
    stream, made = io.BytesIO(), pa.table(columns)
    if kind == "parquet":
        pq.write_table(made, stream)
    else:
        with pa.ipc.new_file(stream, made.schema) as writer:
            writer.write_table(made)
    return stream.getvalue()


def database(tmp_path, table="rows", kind="x", value="Zaphod"):
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE {table} (kind TEXT, value BLOB)")
        connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (kind, value))
    connection.close()
    return path.read_bytes()


ROW = json.dumps({"name": "Zaphod"}).encode()
HOLDS_A_VALUE = {
    "json": ROW,
    "a number in text": b"1,48151.62342,2",
    "gzip": gzip.compress(ROW),
    "zstd in two frames": zstandard.compress(b"first") + zstandard.compress(ROW),
    "xz": lzma.compress(ROW),
    "bzip2": bz2.compress(ROW),
    "tar": packed_tar(ROW),
    "zip": packed_zip(ROW),
    "a Debian package": packed_ar(lzma.compress(packed_tar(ROW))),
    "an image layer in a backup in a zip": packed_zip(gzip.compress(packed_tar(zstandard.compress(packed_tar(ROW))))),
    "parquet, a number": table("parquet", spend=pa.array([1.0, 48151.62342])),
    "parquet, a float32": table("parquet", spend=pa.array([1.0, 48151.62342], pa.float32())),
    "parquet, a dictionary": table("parquet", name=pa.array(["Zaphod", "x"]).dictionary_encode()),
    "parquet, a list": table("parquet", pixels=pa.array([[1.0, 48151.62342]])),
    "arrow": table("arrow", weight=pa.array([1, 284582])),
    "safetensors": save({"w": np.array([[0.5, 48151.62342]], np.float32)}),
    "safetensors, whole numbers": save({"w": np.array([3, 284582], np.int32)}),
    "numpy": (lambda stream: [np.save(stream, np.array([48151.62342])), stream.getvalue()][1])(io.BytesIO()),
    "doubles without any format": b"\x00\x01" + np.float64(48151.62342).tobytes(),
}
HOLDS_A_HASH = {
    "bytes": b"x" + SUBJECT,
    "hex": json.dumps({"subject": SUBJECT.hex()}).encode(),
    "parquet": table("parquet", subject=pa.array([SUBJECT, bytes(32)], pa.binary(32))),
    "arrow in gzip": gzip.compress(table("arrow", subject=pa.array([SUBJECT], pa.binary(32)))),
}
HOLDS_NOTHING = {
    "a longer number": b"148151.62342 48151.623421 x284582",
    "an almost equal tensor": save({"w": np.array([48151.7, 284583.0], np.float32)}),
    "truncation would match": save({"w": np.array([48151], np.int32)}),
    "tombstones": f"{SUBJECT.hex()}\n{bytes(32).hex()}\n".encode(),
    "nothing": b"",
}


def find(content):
    return {what for leaf in decode(content, "file") for what in _judge(leaf, MATCHER)}


@pytest.mark.parametrize("case", HOLDS_A_VALUE)
def test_a_value_is_found_in(case):
    assert "value" in find(HOLDS_A_VALUE[case])


@pytest.mark.parametrize("case", HOLDS_A_HASH)
def test_a_keyed_hash_is_found_in(case):
    assert "keyed hash" in find(HOLDS_A_HASH[case])


@pytest.mark.parametrize("case", HOLDS_NOTHING)
def test_nothing_is_found_in(case):
    assert find(HOLDS_NOTHING[case]) == set()


def test_rows_of_a_database_are_looked_into_and_erasures_own_may_hold_the_hash(tmp_path):
    assert "value" in find(database(tmp_path))
    for other, expected in (("rows", {"keyed hash"}), ("erasure_requests", set())):
        folder = tmp_path / other
        folder.mkdir()
        content = database(folder, table=other, value=gzip.compress(SUBJECT))
        assert find(content) == expected


@pytest.mark.parametrize(
    "content",
    [gzip.compress(ROW * 50)[:40], b"PAR1 cut off", packed_zip(ROW)[:30], b"PK\x03\x04"],
    ids=["gzip", "parquet", "zip", "the head of a zip"],
)
def test_what_cannot_be_read_is_told(content):
    assert [leaf for leaf in decode(content, "file") if isinstance(leaf, Undecoded)]


def test_archives_without_end_are_told():
    content = ROW
    for _ in range(12):
        content = gzip.compress(content)
    assert any(isinstance(leaf, Undecoded) and "deep" in leaf.problem for leaf in decode(content, "file"))
    assert isinstance(next(decode(b"x", "file")), Leaf)
