"""What the spool keeps over a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops.registry.mirror import Operation
from mlops.registry.spool import Spool

END = Operation(kind="end", run="a", at_us=1, body={"status": "FINISHED"})


@pytest.fixture
def open_spool() -> Iterator[Callable[[Path], Spool]]:
    """Opens spools that are closed, with their files, after the test."""
    opened: list[Spool] = []

    def make(folder: Path) -> Spool:
        opened.append(Spool(folder))
        return opened[-1]

    yield make
    for spool in opened:
        spool.close(keep=True)


def test_a_living_owners_spool_is_not_adopted(tmp_path: Path, open_spool: Callable[[Path], Spool]):
    owner, other = open_spool(tmp_path), open_spool(tmp_path)
    owner.append(END)
    assert other.adopt_orphans() == []
    owner.close(keep=True)
    (orphan,) = other.adopt_orphans()
    assert orphan.operations == (END,)
    orphan.remove()
    assert other.adopt_orphans() == []


def test_a_spool_that_vanishes_while_it_is_looked_at_is_passed_over(
    tmp_path: Path, open_spool: Callable[[Path], Spool]
):
    spool = open_spool(tmp_path)
    (tmp_path / "1-ended.jsonl").symlink_to(tmp_path / "gone")  # listed, but not there
    assert spool.adopt_orphans() == []


def test_operations_of_a_killed_process_are_adopted_without_its_last_half_line(
    tmp_path: Path, open_spool: Callable[[Path], Spool]
):
    script = (
        "import os, sys; from pathlib import Path; from mlops.registry.spool import Spool;"
        "from mlops.registry.mirror import Operation;"
        "spool = Spool(Path(sys.argv[1]));"
        "[spool.append(Operation('end', str(n), 1, {'status': 'FINISHED'})) for n in range(3)];"
        'spool._stream.write(\'{"kind": "end"\'); spool._stream.flush(); os.kill(os.getpid(), 9)'
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    (orphan,) = open_spool(tmp_path).adopt_orphans()
    assert [operation.run for operation in orphan.operations] == ["0", "1", "2"]


def test_what_was_sent_is_forgotten_and_a_finished_spool_leaves_no_file(tmp_path: Path):
    spool = Spool(tmp_path)
    spool.append(END)
    spool.clear()
    spool.append(END)
    spool.close(keep=True)
    assert len(next(tmp_path.glob("*.jsonl")).read_text(encoding="utf-8").splitlines()) == 1
    other = Spool(tmp_path / "other")
    other.close(keep=False)
    assert list((tmp_path / "other").iterdir()) == []


def test_files_are_kept_apart_and_dropped_after_use(tmp_path: Path, open_spool: Callable[[Path], Spool]):
    spool = open_spool(tmp_path / "spool")
    source = tmp_path / "report.html"
    source.write_text("PASS", encoding="utf-8")
    kept, again = spool.keep_files(source), spool.keep_files(source)
    source.unlink()
    assert kept.read_text(encoding="utf-8") == again.read_text(encoding="utf-8") == "PASS"
    assert kept.name == "report.html"
    spool.drop_files(kept)
    assert not kept.exists()
    assert again.exists()
    spool.drop_files(tmp_path)  # not one of its own: stays
    assert tmp_path.exists()
