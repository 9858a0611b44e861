"""A layer's bytes depend on its entries and on nothing else."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from mlops.serving.oci_tar import LAYER_TIME, Entry, entries_of_folder, file_entry, link_entry, write_layer

ENTRIES = {
    "usr/bin/tool": file_entry(b"#!", is_executable=True),
    "etc/name": file_entry(b"x" * 700),
    "bin": link_entry("usr/bin"),
    "tmp": Entry(kind="folder", mode=0o1777),
    "a/" + "long" * 60 + "/leaf": file_entry(b"deep"),
}


def _pack(entries, compression="none"):
    target = io.BytesIO()
    blob = write_layer(entries, target, compression=compression)
    return blob, target.getvalue()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_order_of_entries_does_not_matter(compression):
    forward, backward = _pack(ENTRIES, compression), _pack(dict(reversed(ENTRIES.items())), compression)
    assert forward == backward
    assert forward[0].compressed_bytes == len(forward[1])


def test_an_independent_reader_finds_canonical_headers():
    with tarfile.open(fileobj=io.BytesIO(_pack(ENTRIES)[1])) as tar:
        members = {member.name: member for member in tar}
        assert list(members) == sorted(members)
        assert {(member.uid, member.gid, member.uname, member.mtime) for member in members.values()} == {
            (0, 0, "", LAYER_TIME)
        }
        assert members["usr/bin/tool"].mode == 0o755
        assert members["etc/name"].mode == 0o644
        assert members["tmp"].mode == 0o1777
        assert members["usr"].isdir() and members["usr"].mode == 0o755
        assert members["bin"].linkname == "usr/bin"
        assert tar.extractfile("a/" + "long" * 60 + "/leaf").read() == b"deep"


def test_diff_id_does_not_depend_on_the_compression():
    assert {_pack(ENTRIES, compression)[0].diff_id for compression in ("none", "gzip", "zstd")} == {
        _pack(ENTRIES)[0].digest
    }


def test_a_folder_is_packed_without_its_machine(tmp_path: Path):
    digests = set()
    for name, mask in (("one", 0o077), ("two", 0o002)):
        before = os.umask(mask)
        try:
            folder = tmp_path / name
            (folder / "inner" / "__pycache__").mkdir(parents=True)
            (folder / "inner" / "b.py").write_text("b")
            (folder / "inner" / "__pycache__" / "b.pyc").write_text(name)
            (folder / "a.py").write_text("a")
            os.utime(folder / "a.py", (mask, mask))
        finally:
            os.umask(before)
        digests.add(_pack(entries_of_folder(folder, prefix="opt"))[0].digest)
    assert len(digests) == 1
