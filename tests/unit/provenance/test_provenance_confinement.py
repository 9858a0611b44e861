"""Confinement in real subprocesses: the keys are out of reach, and everything else works."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops.clock import FakeClock
from mlops.provenance.confinement import (
    BUBBLEWRAP,
    LANDLOCK,
    available_method,
    call_confined,
    confined_command,
    landlock_version,
)
from mlops.provenance.keys import make_key

needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")

ATTEMPTS = {
    "read": "open(KEY, 'rb').read()",
    "read through /proc": "open('/proc/self/root' + KEY, 'rb').read()",
    "read through the parent's root": "open(f'/proc/{os.getppid()}/root' + KEY, 'rb').read()",
    "write": "open(KEY, 'ab').write(b'x')",
    "truncate": "os.truncate(KEY, 0)",
    "remove": "os.remove(KEY)",
    "replace": "os.rename(FREE, KEY)",
    "new file beside it": "open(os.path.dirname(KEY) + '/other.pem', 'wb')",
    "hard link": "os.link(KEY, FREE + '.link')",
    "move it out": "os.rename(KEY, FREE)",
    "move the folder": "os.rename(os.path.dirname(KEY), os.path.dirname(FREE) + '/keys')",
    "a child process": "subprocess.run(['cat', KEY], check=True, stderr=subprocess.DEVNULL)",
}

WORK = {
    "write and read a file of the project": "p=os.path.dirname(FREE)+'/out'; open(p,'w').write('x'); open(p).read()",
    "move a file between folders": "os.rename(MOVABLE, os.path.dirname(FREE) + '/moved')",
    "make temporary files": "tempfile.NamedTemporaryFile().write(b'x')",
    "list the project": "os.listdir(ROOT)",
    "import more of the standard library": "import sqlite3, xml.dom.minidom",
    "start a process": "subprocess.run(['ls', '/'], check=True, stdout=subprocess.DEVNULL)",
    "talk to itself": "a, b = socket.socketpair(); a.send(b'x'); b.recv(1)",
    "shared memory": "h, p = tempfile.mkstemp(dir='/dev/shm'); os.close(h); os.remove(p)",
}

SCRIPT = """
import json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from mlops.provenance.confinement import confine
KEY, FREE, MOVABLE, ROOT, tried = json.loads(sys.argv[1])
method = confine(hidden=Path(KEY).parent)
outcomes = {}
for name, line in tried.items():
    try:
        exec(line)
        outcomes[name] = "done"
    except (OSError, subprocess.CalledProcessError) as error:
        outcomes[name] = type(error).__name__
print(json.dumps([method, outcomes]))
"""


@pytest.fixture
def layout(tmp_path: Path) -> tuple[str, str, str, str]:
    """A project with a key, a file that user code may replace, and one that it may move."""
    make_key(tmp_path / "project" / ".mlops" / "keys", "machine", clock=FakeClock())
    (tmp_path / "project" / "work").mkdir()
    (tmp_path / "project" / "data").mkdir()
    free, movable = tmp_path / "project" / "work" / "free", tmp_path / "project" / "data" / "movable"
    free.write_text("")
    movable.write_text("")
    return str(tmp_path / "project/.mlops/keys/machine.pem"), str(free), str(movable), str(tmp_path / "project")


def run_confined(layout: tuple[str, str, str, str], tried: dict[str, str]) -> tuple[str, dict[str, str]]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([*layout, tried])], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    method, outcomes = json.loads(result.stdout)
    return method, outcomes


@needs_landlock
def test_a_confined_process_cannot_reach_the_key_in_any_way(layout: tuple[str, str, str, str]) -> None:
    before = Path(layout[0]).read_bytes()
    method, outcomes = run_confined(layout, ATTEMPTS)
    assert method == LANDLOCK
    assert {name: outcome for name, outcome in outcomes.items() if outcome == "done"} == {}
    assert Path(layout[0]).read_bytes() == before
    assert [path.name for path in Path(layout[0]).parent.iterdir()] == ["machine.pem"]


@needs_landlock
def test_a_confined_process_can_still_work(layout: tuple[str, str, str, str]) -> None:
    _, outcomes = run_confined(layout, WORK)
    assert outcomes == dict.fromkeys(WORK, "done")


@pytest.mark.skipif(available_method() not in (LANDLOCK, BUBBLEWRAP), reason="no way to confine on this machine")
def test_a_command_can_be_started_confined_from_its_first_instruction(layout: tuple[str, str, str, str]) -> None:
    key, free, _, _ = layout
    command, method = confined_command(
        (sys.executable, "-c", f"open({free!r}).read(); open({key!r}).read()"), hidden=Path(key).parent
    )
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert method in (LANDLOCK, BUBBLEWRAP)
    assert result.returncode == 1
    assert "machine.pem" in result.stderr.splitlines()[-1]
    assert "Error" in result.stderr.splitlines()[-1]


FOREIGN: dict[str, Callable[[Path], object]] = {
    "write": lambda root: (root / "others" / "file").write_text("x"),
    "append": lambda root: (root / "others" / "file").open("a"),
    "make a file": lambda root: (root / "others" / "new").touch(),
    "make a folder": lambda root: (root / "new").mkdir(),
    "remove": lambda root: (root / "others" / "file").unlink(),
    "truncate": lambda root: os.truncate(root / "others" / "file", 0),
    "put its own in the place": lambda root: (root / "own" / "file").replace(root / "others" / "file"),
    "take it away": lambda root: (root / "others" / "file").rename(root / "own" / "taken"),
    "link it to where it may write": lambda root: os.link(root / "others" / "file", root / "own" / "link"),
    "a link that leads out": lambda root: (root / "own" / "out").write_text("x"),
    "a database": lambda root: sqlite3.connect(root / "others" / "ledger").execute("DELETE FROM trials"),
    "a child process": lambda root: subprocess.run(["rm", root / "others" / "file"], check=True, capture_output=True),
}
OWN: dict[str, Callable[[Path], object]] = {
    "write and replace": lambda root: (root / "own" / "file").replace(root / "own" / "other"),
    "move between its folders": lambda root: (root / "own" / "file").rename(root / "cache" / "file"),
    "read what is not its own": lambda root: (root / "others" / "file").read_text(),
    "a temporary file": lambda root: tempfile.NamedTemporaryFile().close(),
    "nothing to see": lambda root: Path("/dev/null").write_text("x"),
    "shared memory": lambda root: tempfile.NamedTemporaryFile(dir="/dev/shm").close(),
}


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, a cache, and what belongs to others; temporary files have a folder too."""
    for name in ("own", "cache", "others", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "file").write_text("mine")
    (tmp_path / "others" / "file").write_text("theirs")
    (tmp_path / "own" / "out").symlink_to(tmp_path / "others" / "file")
    with sqlite3.connect(tmp_path / "others" / "ledger") as ledger:
        ledger.execute("CREATE TABLE trials (number)")
        ledger.execute("INSERT INTO trials VALUES (1)")
    ledger.close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_landlock
@pytest.mark.parametrize("name", FOREIGN)
def test_a_confined_call_changes_nothing_that_is_not_its_own(shared: Path, name: str) -> None:
    before = content(shared / "others")
    with pytest.raises((OSError, sqlite3.OperationalError, subprocess.CalledProcessError)):
        call_confined(lambda: FOREIGN[name](shared), writable=[shared / "own", shared / "cache"])
    assert content(shared / "others") == before
    assert not (shared / "new").exists()


@pytest.mark.parametrize("name", OWN)
def test_a_confined_call_can_still_work_and_leaves_its_caller_free(shared: Path, name: str) -> None:
    call_confined(lambda: OWN[name](shared), writable=[shared / "own", shared / "cache"])
    (shared / "others" / "new").touch()
    assert call_confined(lambda: 7, writable=[shared / "others"]) == 7
