"""Keeps operations in a file until MLflow has them, so that neither a crash nor an unreachable server loses one.

Each mirror has a file of its own, locked while it lives; a file without a living owner is adopted by the next mirror.
Leaves to others: applying operations (mlflow_runs.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from mlops.registry.mirror import Operation


class Spool:
    """One process's append-only file of operations not yet confirmed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        aside = folder / f"{os.getpid()}-{uuid.uuid4().hex}.new"
        self._stream = aside.open("a", encoding="utf-8")
        fcntl.flock(self._stream, fcntl.LOCK_EX)
        self._path = aside.with_suffix(".jsonl")
        aside.rename(self._path)  # under its final name it is locked from the start: nobody adopts it by mistake

    def append(self, operation: Operation) -> None:
        """Keep an operation; in the kernel's hands when this returns, so it survives the process."""
        self._stream.write(operation.to_line() + "\n")
        self._stream.flush()

    def keep_files(self, path: Path) -> Path:
        """A private link (or copy, across file systems) of a file or folder, so that the original may be deleted."""
        target = self._folder / "files" / uuid.uuid4().hex / path.name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(path), str(target))
        return target

    def is_own_copy(self, path: Path) -> bool:
        """Whether `keep_files` made it."""
        return path.is_relative_to(self._folder / "files")

    def drop_files(self, path: Path) -> None:
        """Remove a copy that `keep_files` made."""
        if self.is_own_copy(path):
            shutil.rmtree(path.parent, ignore_errors=True)

    def clear(self) -> None:
        """Everything appended so far is in MLflow."""
        self._stream.truncate(0)
        self._stream.seek(0)

    def reject(self, run: str, *, what: str, reason: str) -> None:
        """Keep what MLflow will never take beside the spool, for people."""
        with (self._folder / "rejected.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{run}\t{reason}\t{what}\n")

    def adopt_orphans(self) -> list[OrphanSpool]:
        """Files whose owner is gone, locked by us from now on; oldest first."""
        orphans = []
        for path in sorted(self._folder.glob("*.jsonl"), key=_changed_at):
            if path == self._path:
                continue
            try:
                stream = path.open("r+", encoding="utf-8")
            except FileNotFoundError:
                continue  # its owner ended meanwhile, and has sent all
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.close()  # its owner lives
                continue
            orphans.append(OrphanSpool(path, _read_operations(stream)))
            stream.close()  # two mirrors may adopt the same file: operations can be applied twice without harm
        return orphans

    def close(self, *, keep: bool) -> None:
        """Give up the lock; the file goes unless it still holds operations."""
        self._stream.close()
        if not keep:
            self._path.unlink(missing_ok=True)


class OrphanSpool:
    """What a process that is gone had not sent."""

    def __init__(self, path: Path, operations: Iterable[Operation]) -> None:
        self._path = path
        self.operations = tuple(operations)

    def remove(self) -> None:
        """All of it is in MLflow now."""
        self._path.unlink(missing_ok=True)


def _read_operations(stream: Iterable[str]) -> list[Operation]:
    operations = []
    for line in stream:
        try:
            operations.append(Operation.from_line(line))
        except ValueError:
            break  # only the last line can be cut off: its writer died before the call returned
    return operations


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
