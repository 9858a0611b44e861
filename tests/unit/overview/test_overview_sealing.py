"""A sealed file opens with its passphrase only, and only whole and unchanged."""

import io
import random

import pytest

from mlops.errors import ProjectError
from mlops.overview.sealing import CHUNK_BYTES, MAGIC, OpeningReader, SealingWriter

PASSPHRASE = "correct horse battery"


def seal(content, passphrase=PASSPHRASE):
    target = io.BytesIO()
    writer = SealingWriter(target, passphrase)
    for start in range(0, len(content), 300_000):
        writer.write(content[start : start + 300_000])
    writer.close()
    return target.getvalue()


def read(sealed, passphrase=PASSPHRASE):
    reader, pieces = OpeningReader(io.BytesIO(sealed), passphrase, name="x.backup"), []
    while piece := reader.read(700_001):
        pieces.append(piece)
    return b"".join(pieces)


CONTENT = random.Random(1).randbytes(2 * CHUNK_BYTES + 17)
SEALED = seal(CONTENT)
HEADER = SEALED.index(b"\n", len(MAGIC)) + 1
CHUNK = CHUNK_BYTES + 16


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_what_was_sealed_is_read_back(size):
    assert read(seal(CONTENT[:size])) == CONTENT[:size]


def test_the_content_does_not_show_and_two_seals_differ():
    assert b"aaaaaaaa" not in seal(b"a" * 1000)
    assert seal(b"a") != seal(b"a")


def chunk(sealed, number):
    return sealed[HEADER + number * CHUNK : HEADER + (number + 1) * CHUNK]


CHANGES = {
    "one bit in the first chunk": lambda it: it[: HEADER + 5] + bytes([it[HEADER + 5] ^ 1]) + it[HEADER + 6 :],
    "one bit in the last byte": lambda it: it[:-1] + bytes([it[-1] ^ 1]),
    "the last byte is missing": lambda it: it[:-1],
    "cut off between chunks": lambda it: it[: HEADER + CHUNK],
    "nothing after the header": lambda it: it[:HEADER],
    "chunks swapped": lambda it: it[:HEADER] + chunk(it, 1) + chunk(it, 0) + it[HEADER + 2 * CHUNK :],
    "a chunk repeated": lambda it: it[: HEADER + CHUNK] + chunk(it, 0) + it[HEADER + CHUNK :],
    "something added": lambda it: it + b"x",
    "another header": lambda it: it[:HEADER].replace(b'"version": 1', b'"version":  1') + it[HEADER:],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    with pytest.raises(ProjectError, match=r"was changed or cut off"):
        read(CHANGES[change](SEALED))


REFUSED = {
    "another passphrase": (SEALED, "correct horse batterz", "does not open"),
    "an empty file": (b"", PASSPHRASE, "is no backup"),
    "some other file": (b"PK\x03\x04" * 100, PASSPHRASE, "is no backup"),
    "costs that would take for ever": (SEALED.replace(b'"n": 65536', b'"n": 6553600000'), PASSPHRASE, "out of bounds"),
    "a newer one": (SEALED.replace(b'"version": 1', b'"version": 2'), PASSPHRASE, "newer mlops"),
    "half a header": (SEALED[:40], PASSPHRASE, "is no backup"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_opened_is_said_in_one_sentence(case):
    sealed, passphrase, words = REFUSED[case]
    with pytest.raises(ProjectError, match=words):
        read(sealed, passphrase)


def test_a_short_passphrase_is_refused():
    with pytest.raises(ProjectError, match="fewer than"):
        seal(b"", passphrase="short")
