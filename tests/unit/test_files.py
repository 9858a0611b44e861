"""A reader sees the old or the new content, never half."""

import errno
import stat
from pathlib import Path

import pytest

from mlops.errors import EnvironmentFault
from mlops.files import folder_aside, write_atomically


def test_a_file_is_replaced_whole_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")
    write_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "candidate"
    with pytest.raises(RuntimeError, match="half-way"), folder_aside(target) as scratch:
        (scratch / "part").write_text("x")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with folder_aside(target) as scratch:
            (scratch / "part").write_text(content)
        assert (target / "part").read_text() == content
    assert [child.name for child in tmp_path.iterdir()] == ["candidate"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="No space left") as raised, folder_aside(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free disk space" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", "x")
