"""The reference product, baked once per test session in a clone of this tree, for every end-to-end test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Clone:
    """A clone of this tree with state of its own, and the `mlops` command in it."""

    folder: Path
    environment: dict[str, str]

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


@pytest.fixture(scope="session")
def income_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """`income`, released from a fresh clone (about two minutes); tests may promote it but must not change its data."""
    clone = make_clone(tmp_path_factory.mktemp("income") / "project")
    clone.check("release", "income", timeout=1200)
    yield clone
    clone.run("stop")
