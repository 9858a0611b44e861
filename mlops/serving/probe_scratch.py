"""The folder of a probe or of `mlops image run`, locked as long as its process lives.

What a killed one left running is known by that.
Leaves to others: probing (probe.py), serving (trial_run.py), saying what was found (mlops/project/processes.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops.serving.runtime import Instance, Runtime

_PREFIX, _LOCK, _SOCKETS = "mlops-probe-", "lock", "s"
PROBE, TRIAL = "probe-", "try-"
"""How instances of probes and of `mlops image run` are called."""


@contextmanager
def probe_scratch() -> Iterator[Path]:
    """A new folder for the socket of an image; it goes when the block ends."""
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX))  # socket paths are short (107 bytes), project paths may not be
    handle = os.open(scratch / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        scratch.chmod(0o755)
        sockets = scratch / _SOCKETS
        sockets.mkdir()
        sockets.chmod(0o777)  # the image's user has another id than ours
        yield sockets
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(handle)


def name_instance(sockets: Path, *, digest: str, kind: str = PROBE) -> str:
    """What a probe calls its instance."""
    return f"{kind}{digest.removeprefix('sha256:')[:12]}-{sockets.parent.name[-8:]}"


def find_left_over(runtime: Runtime) -> tuple[Instance, ...]:
    """Instances of probes and trial runs that are dead."""
    return tuple(
        instance
        for instance in runtime.list_instances()
        if instance.name.startswith((PROBE, TRIAL)) and not _is_held(instance.socket.parents[1] / _LOCK)
    )


def stop_left_over(runtime: Runtime) -> tuple[str, ...]:
    """Stop what killed ones left running, and remove their folders; gives the names of the instances."""
    found = find_left_over(runtime)
    for instance in found:
        runtime.stop(instance, timeout_seconds=1)
        scratch = instance.socket.parents[1]
        if scratch.name.startswith(_PREFIX):
            shutil.rmtree(scratch, ignore_errors=True)
    return tuple(instance.name for instance in found)


def _is_held(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False  # its folder is gone, so nobody uses it
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
