"""The one door to git: what is committed, what is dirty, what changed, and commits that the machine makes itself.

Paths are relative to the project root, with slashes, also when the project lies deeper in a repository. Nothing here
needs an identity, a HOME or hooks. Leaves to others: what the files mean, and signatures over commits (git_commits.py).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import EnvironmentFault, ProjectError, ProvenanceError

_SETTINGS = (
    "-c",
    "core.quotePath=false",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "advice.detachedHead=false",
)


@dataclass(frozen=True)
class GitRepository:
    """The repository around a project; make it with `open_repository`."""

    root: Path
    """The project's root folder."""
    prefix: str
    """Path from the repository's top to `root`, empty or ending in a slash."""

    def head_commit(self) -> str:
        """Hash of the commit that is checked out.

        Raises:
            ProjectError: There is no commit yet.
        """
        result = run_git(self.root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", is_checked=False)
        if result.returncode != 0:
            raise ProjectError(f"{self.root} has no commit yet", hint="run `git add . && git commit` first")
        return result.stdout.decode().strip()

    def resolve(self, revision: str) -> str:
        """Full hash of a commit, by any name git knows it by.

        Raises:
            ProvenanceError: There is no such commit here.
        """
        arguments = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        result = run_git(self.root, *arguments, is_checked=False)
        if result.returncode != 0:
            raise ProvenanceError(
                f"no commit {revision!r} in {self.root}", hint="a shallow clone lacks history: `git fetch --unshallow`"
            )
        return result.stdout.decode().strip()

    def dirty_paths(self, *paths: str) -> tuple[str, ...]:
        """Files that differ from the last commit or are new and not ignored, below `paths` (default: the project)."""
        output = run_git(
            self.root,
            "status",
            "--porcelain=v1",
            "-z",
            "--no-renames",
            "--untracked-files=all",
            "--",
            *(paths or (".",)),
        ).stdout.decode(errors="surrogateescape")
        names = {entry[3:] for entry in output.split("\0") if entry}
        return tuple(sorted(name.removeprefix(self.prefix) for name in names))

    def is_tracked(self, path: str) -> bool:
        """Whether git knows the file (it may be changed since)."""
        return run_git(self.root, "ls-files", "--error-unmatch", "--", path, is_checked=False).returncode == 0

    def changed_files(self, base: str, head: str) -> tuple[str, ...]:
        """Files of the project that differ between two commits; of a rename both names.

        Raises:
            ProvenanceError: No such commit.
        """
        arguments = ("diff", "--name-only", "-z", "--no-renames", "--relative", self.resolve(base), self.resolve(head))
        output = run_git(self.root, *arguments, "--").stdout.decode(errors="surrogateescape")
        return tuple(sorted(name for name in output.split("\0") if name))

    def list_files(self, folder: str = "", *, revision: str = "HEAD") -> tuple[str, ...]:
        """Files of a commit below a folder.

        Raises:
            ProvenanceError: No such commit.
        """
        where = f"{self.resolve(revision)}:{self.prefix}"
        output = run_git(self.root, "ls-tree", "-r", "-z", "--name-only", "--full-tree", where).stdout.decode()
        return tuple(name for name in output.split("\0") if name and name.startswith(folder))

    def read_file(self, path: str, *, revision: str = "HEAD") -> bytes:
        """Content of a file in a commit.

        Raises:
            ProvenanceError: No such commit, or no such file in it.
        """
        commit = self.resolve(revision)
        result = run_git(self.root, "cat-file", "blob", f"{commit}:{self.prefix}{path}", is_checked=False)
        if result.returncode != 0:
            raise ProvenanceError(f"commit {commit[:12]} has no file {path}")
        return result.stdout

    def last_commit_of(self, path: str, *, revision: str = "HEAD") -> str | None:
        """Hash of the newest commit up to `revision` that changed the file; None if none did."""
        arguments = ("log", "-1", "--format=%H", self.resolve(revision), "--", path)
        return run_git(self.root, *arguments).stdout.decode().strip() or None

    def last_change_seconds(self, path: str) -> int | None:
        """When a file was last committed, in seconds since the epoch; None if it never was."""
        text = run_git(self.root, "log", "-1", "--format=%ct", "HEAD", "--", path).stdout.decode().strip()
        return int(text) if text else None

    def commits_of(self, path: str) -> tuple[str, ...]:
        """Hashes of the commits that made or changed a file, newest first."""
        arguments = ("log", "--format=%H", "--diff-filter=AM", "HEAD", "--", path)
        return tuple(run_git(self.root, *arguments).stdout.decode().split())

    def authors_of(self, *paths: str, base: str, head: str) -> tuple[str, ...]:
        """E-mail addresses of the authors who changed `paths` after `base`, up to `head`, each once."""
        arguments = ("log", "--format=%ae", f"{self.resolve(base)}..{self.resolve(head)}", "--", *paths)
        return tuple(sorted(set(run_git(self.root, *arguments).stdout.decode().split("\n")) - {""}))

    def clone_at(self, commit: str, target: Path) -> Path:
        """A clean copy of the repository with `commit` checked out; returns the project's root inside it.

        Raises:
            ProvenanceError: No such commit here.
        """
        full = self.resolve(commit)
        target.parent.mkdir(parents=True, exist_ok=True)
        top = run_git(self.root, "rev-parse", "--show-toplevel").stdout.decode().rstrip("\n")
        run_git(
            self.root, "clone", "--quiet", "--no-checkout", "--shared", "--", top, str(target)
        )  # rebased commits too
        run_git(target, "checkout", "--quiet", "--detach", full)
        return target / self.prefix


def open_repository(root: Path) -> GitRepository:
    """The repository around a project's root.

    Raises:
        ProjectError: `root` is in no git repository.
        EnvironmentFault: git is not installed.
    """
    result = run_git(root, "rev-parse", "--show-prefix", is_checked=False)
    if result.returncode != 0:
        reason = result.stderr.decode(errors="replace").strip()
        if "dubious ownership" in reason:
            raise ProjectError(
                f"git does not trust {root}: it belongs to another user",
                hint=f"run `git config --global --add safe.directory {root}`",
            )
        raise ProjectError(
            f"{root} is not in a git repository",
            hint="run `git init && git add . && git commit -m 'Start'`",
            items=(reason,),
        )
    return GitRepository(root=root, prefix=result.stdout.decode().strip("\n"))


def run_git(
    folder: Path,
    *arguments: str,
    is_checked: bool = True,
    content: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Call git in a folder, whatever the caller's identity, locale and `GIT_*` variables.

    Args:
        folder: Where it runs.
        arguments: After `git`.
        is_checked: Raise when git fails.
        content: Standard input.
        environment: More variables.

    Raises:
        ProvenanceError: git failed and `is_checked`.
        EnvironmentFault: git is not installed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    fixed = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_NOSYSTEM": "1"}
    try:
        result = subprocess.run(
            ["git", *_SETTINGS, *arguments],
            cwd=folder,
            env={**inherited, **fixed, **(environment or {})},
            input=content,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise ProjectError(f"{folder} is not a folder") from error
        raise EnvironmentFault("git is not installed", hint="run `apt-get install git`") from error
    if is_checked and result.returncode != 0:
        reason = result.stderr.decode(errors="replace").strip()
        raise ProvenanceError(f"git {arguments[0]} failed in {folder}: {reason or f'exit {result.returncode}'}")
    return result
