"""Confinement: a process gives up a folder for good (the keys) before it loads user code, and keeps everything else; a
thread gives up writing outside a few folders before it runs user code.

Workers run as the same user, so file modes hide nothing. Landlock (Linux 5.13 and later; kernel documentation
userspace-api/landlock) only knows what is allowed, so every sibling on the way from `/` to the folder is allowed by
name: an entry made later directly in one of those few folders cannot be opened, or made, by the confined process.
Leaves to others: calling it (training/ray_*.py), and saying in attestations which method was used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from mlops.errors import EnvironmentFault

Result = TypeVar("Result")

LANDLOCK = "landlock"
BUBBLEWRAP = "bubblewrap"
NONE = "none"

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

# LANDLOCK_ACCESS_FS_*. Listing (READ_DIR), EXECUTE and devices (IOCTL_DEV) are not handled and so stay free.
_WRITE_FILE, _READ_FILE = 1 << 1, 1 << 2
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE = sum(1 << bit for bit in range(6, 13))  # character device, folder, file, socket, fifo, block device, symlink
_REFER = 1 << 13  # since version 2: rename and link between folders
_TRUNCATE = 1 << 14  # since version 3
_RIGHTS = _WRITE_FILE | _READ_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def available_method() -> str:
    """How this machine can confine: `landlock`, `bubblewrap` (only by `confined_command`) or `none`."""
    if landlock_version() > 0:
        return LANDLOCK
    return BUBBLEWRAP if _is_bubblewrap_usable() else NONE


def in_process_method() -> str:
    """What `confine` returns on this machine: `landlock` or `none`."""
    return LANDLOCK if landlock_version() > 0 else NONE


@functools.cache
def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 when there is none or it is switched off."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, _system_call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION))


def confine(*, hidden: Path) -> str:
    """Give up reading, writing and replacing what lies in `hidden`, for this thread and all it starts from now on.

    It cannot be undone. Threads that already run keep their rights: call it first in a process, or start the process by
    `confined_command`. Names in `hidden` can still be listed. Memory of unconfined processes becomes unreadable too
    (Landlock forbids ptrace out of the domain). Where the folder for temporary files would be cut off, it is replaced
    (`TMPDIR`) by `tmp` beside `hidden`.

    Returns:
        `landlock`, or `none` when the kernel has no Landlock: the caller must say so, or refuse.

    Raises:
        EnvironmentFault: The kernel has Landlock and refused.
    """
    if landlock_version() == 0:
        return NONE
    target = hidden.resolve()
    _keep_temporary_folder(target)
    _restrict(_siblings(target), rights=_RIGHTS)
    return LANDLOCK


def confine_writes(*, writable: Sequence[Path]) -> str:
    """Give up making, changing and removing files outside `writable`, for this thread and all it starts from now on.

    Temporary files, devices and shared memory stay free; what is open already stays open. It cannot be undone.

    Args:
        writable: Folders that exist.

    Returns:
        `landlock`, or `none` when the kernel has no Landlock.

    Raises:
        EnvironmentFault: The kernel has Landlock and refused.
    """
    if landlock_version() == 0:
        return NONE
    free = (Path(tempfile.gettempdir()), Path("/dev"))
    _restrict([path.resolve() for path in (*writable, *free)], rights=_RIGHTS & ~_READ_FILE)
    return LANDLOCK


def call_confined(work: Callable[[], Result], *, writable: Sequence[Path]) -> Result:
    """What `work` gives or raises, called in a thread of its own that writes nothing outside `writable`.

    The thread costs a tenth of a millisecond, its rules about as much; the caller stays as free as it was.
    """
    if landlock_version() == 0:
        return work()
    result: Future[Result] = Future()

    def run() -> None:
        try:
            confine_writes(writable=writable)
            result.set_result(work())
        except BaseException as error:  # whatever it is, the caller must hear of it
            result.set_exception(error)

    threading.Thread(target=run, name="confined", daemon=True).start()
    return result.result()


def confined_command(command: Sequence[str], *, hidden: Path) -> tuple[tuple[str, ...], str]:
    """The command that starts `command` with `hidden` out of reach from its first instruction, and the method's name.

    With Landlock all threads of the new process are confined; with bubblewrap the folder is empty for it.
    """
    method = available_method()
    if method == LANDLOCK:
        return (sys.executable, "-P", "-m", __name__, str(hidden), *command), method
    if method == BUBBLEWRAP:
        prefix = ("bwrap", "--dev-bind", "/", "/", "--tmpfs", str(hidden.resolve()), "--die-with-parent", "--")
        return (*prefix, *command), method
    return tuple(command), method


def _restrict(paths: Iterable[Path], *, rights: int) -> None:
    """Of `rights`, and of renaming and truncating, keep for this thread those below `paths`, for good."""
    version = landlock_version()
    rights |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = _RulesetAttributes(handled_access_fs=rights)
    ruleset = _checked(
        _system_call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0), "landlock_create_ruleset"
    )
    try:
        for path in paths:
            _allow(ruleset, path, rights=rights)
        _checked(int(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)), "prctl")
        _checked(_system_call(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _siblings(target: Path) -> list[Path]:
    """Everything that lies beside the way from `/` to `target`; together with what is below, all but `target`."""
    found: list[Path] = []
    for inner, folder in zip((target, *target.parents), target.parents, strict=False):
        try:
            found.extend(path for path in sorted(folder.iterdir()) if path.name != inner.name)
        except PermissionError:
            continue
    return found


def _allow(ruleset: int, path: Path, *, rights: int) -> None:
    """Allow a file or a folder with all below it; what cannot be opened (gone, or a link) needs no rule."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        is_folder = path.is_dir() and not path.is_symlink()
        if path.is_symlink():
            return
        rule = _PathBeneath(allowed_access=rights if is_folder else rights & _FILE_RIGHTS, parent_fd=handle)
        _checked(
            _system_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0), f"landlock rule for {path}"
        )
    finally:
        os.close(handle)


def _keep_temporary_folder(target: Path) -> None:
    """New files directly in a parent of `target` will be out of reach: make temporary ones beside `target`."""
    if Path(tempfile.gettempdir()).resolve() in target.parents:
        replacement = target.parent / "tmp"
        replacement.mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(replacement)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: object) -> int:
    return int(_libc().syscall(ctypes.c_long(number), *arguments))


def _checked(result: int, what: str) -> int:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise EnvironmentFault(f"{what} failed: {reason}", hint="`mlops doctor` says which confinement works here")
    return result


def _is_bubblewrap_usable() -> bool:
    program = shutil.which("bwrap")
    if program is None:
        return False
    return subprocess.run([program, "--dev-bind", "/", "/", "true"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    confine(hidden=Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - replaces this process by the given command, without a shell
