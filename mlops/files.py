"""Writing files so that a reader sees the old or the new content, never half of one.

Leaves to others: what stands in the files, and locking between processes (filelock, the ledger).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops.errors import EnvironmentFault


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write aside, fsync, rename, fsync the folder.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written.
    """
    blob = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {path}: {error.strerror}", hint="free disk space or fix rights"
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(blob)
            stream.flush()
            os.fsync(stream.fileno())
        Path(aside).chmod(mode)
        Path(aside).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        Path(aside).unlink(missing_ok=True)
        raise EnvironmentFault(
            f"cannot write {path}: {error.strerror}", hint="free disk space or fix rights"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends well, and vanishes when it does not.

    An existing `target` is replaced; between the two renames it is absent, so use content-addressed names where readers
    run at the same time.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        for path in sorted(scratch.rglob("*")):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        scratch.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".old-{target.name}.", dir=target.parent))
            target.replace(old / "content")
            scratch.replace(target)
            shutil.rmtree(old)
        else:
            scratch.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise EnvironmentFault(
            f"cannot write {target}: {error.strerror}", hint="free disk space or fix rights"
        ) from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def remove_tree(folder: Path) -> bool:
    """Remove a folder or file: from its name in one step, then its content; says whether it was there.

    What a kill in between leaves has a name that begins with `.gone-`; the next call in the same parent ends it.

    Raises:
        EnvironmentFault: It cannot be removed.
    """
    try:
        for old in folder.parent.glob(".gone-*"):
            shutil.rmtree(old, onerror=_open_and_retry)
        if not folder.exists() and not folder.is_symlink():
            return False
        aside = Path(tempfile.mkdtemp(prefix=".gone-", dir=folder.parent))
        folder.replace(aside / folder.name)
        shutil.rmtree(aside, onerror=_open_and_retry)
        sync_folder(folder.parent)
    except OSError as error:
        raise EnvironmentFault(f"cannot remove {folder}: {error.strerror}", hint="fix rights and try again") from error
    return True


def _open_and_retry(function: Callable[[str], object], path: str, _error: object) -> None:
    """Unpacked images have folders that their owner may not write to."""
    Path(path).parent.chmod(0o700)
    if Path(path).is_dir() and not Path(path).is_symlink():
        Path(path).chmod(0o700)
        shutil.rmtree(path)
    else:
        function(path)
