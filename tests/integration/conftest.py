"""The reference product, baked once per test session in a clone of this tree, for every end-to-end test."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Clone:
    """A clone of this tree with state of its own, and the `mlops` command in it."""

    folder: Path
    environment: dict[str, str]
    ended_before_kill: list[int] = field(default_factory=list)
    """Trials of the first release that had ended when it was killed."""
    said: list[str] = field(default_factory=list)
    """What the release printed."""
    left_at_home: list[str] = field(default_factory=list)
    """Files that the release made in the home folder."""

    def run(self, *arguments: str, stdin: str = "", timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """`mlops …` as a user types it."""
        return subprocess.run(
            [sys.executable, "-m", "mlops.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def check(self, *arguments: str, stdin: str = "", timeout: float = 600) -> str:
        """The same, and it must succeed; returns stdout."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"mlops {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        """`git …` in the clone; returns stdout."""
        identity = ("-c", "user.name=Test Author", "-c", "user.email=author@example.org")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout


def make_clone(folder: Path) -> Clone:
    """Clone HEAD, lay the working tree's changes over it, share the content store of downloads."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=-1, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    store = ROOT / ".mlops" / "store"
    store.mkdir(parents=True, exist_ok=True)  # downloads are content-addressed: sharing them shares no state
    (folder / ".mlops").mkdir(exist_ok=True)
    (folder / ".mlops" / "store").symlink_to(store)
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "ORT_DISABLE_TELEMETRY": "1"}
    for name in ("RAY_ADDRESS", "MLOPS_LEDGER", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    clone = Clone(folder, environment)
    clone.git("add", "-A")
    clone.git("commit", "-q", "--allow-empty", "-m", "Working tree under test")
    return clone


def kill_in_the_middle(clone: Clone, *, finished_trials: int) -> tuple[int, ...]:
    """Start a release, kill it with everything it started when so many trials have ended; gives their numbers."""
    command = [sys.executable, "-m", "mlops.cli", "release", "income"]
    with (clone.folder / ".mlops" / "killed.log").open("wb") as log:
        release = subprocess.Popen(
            command, cwd=clone.folder, env=clone.environment, stdout=log, stderr=log, start_new_session=True
        )
    ledger = clone.folder / ".mlops" / "ledger.sqlite"
    limit = time.monotonic() + 300
    while time.monotonic() < limit and release.poll() is None:
        time.sleep(0.2)
        ended = read_ended_trials(ledger)
        if len(ended) >= finished_trials:
            break
    assert release.poll() is None, (clone.folder / ".mlops" / "killed.log").read_text()
    os.killpg(release.pid, signal.SIGKILL)
    release.wait()
    return read_ended_trials(ledger)


def read_ended_trials(ledger: Path) -> tuple[int, ...]:
    """Numbers of the trials that ended, straight from the ledger file."""
    if not ledger.is_file():
        return ()
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        try:
            rows = connection.execute("SELECT number FROM trials WHERE state != 'RUNNING' ORDER BY number").fetchall()
        except sqlite3.OperationalError:
            return ()  # not migrated yet
    return tuple(number for (number,) in rows)


@pytest.fixture(scope="session")
def income_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """`income`, released from a fresh clone: killed in the middle of the sweep, then run to the end (two minutes).

    Tests may promote it, but must not change its data.
    """
    clone = make_clone(tmp_path_factory.mktemp("income") / "project")
    clone.ended_before_kill.extend(kill_in_the_middle(clone, finished_trials=2))
    clone.said.append(clone.check("release", "income", timeout=1200))
    clone.said.append(clone.check("gate", "show", "income", "--json"))  # before any test judges anything else
    home = Path(clone.environment["HOME"])
    clone.left_at_home.extend(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    yield clone
    clone.run("stop")


@pytest.fixture(scope="session")
def digits_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """`digits` with two of its trials and half of the rows that are attacked, released from a fresh clone.

    Promote it, but do not change its data.
    """
    clone = make_clone(tmp_path_factory.mktemp("digits") / "project")
    for name, was, now in (
        ("training", "trials: 6\n", "trials: 2\n"),
        ("evaluation", "rows: 800\n", "rows: 400\n"),
        ("evaluation", "rows: 300\n", "rows: 150\n"),
    ):
        file = clone.folder / name / "digits.yaml"
        text = file.read_text()
        assert was in text
        file.write_text(text.replace(was, now))
    clone.git("commit", "-q", "-a", "-m", "Compare two trials")
    clone.said.append(clone.check("release", "digits", timeout=1200))
    yield clone
    clone.run("stop")
