"""The process that keeps a local Ray alive between commands, and ends it after ten idle minutes (`python -m …`).

It is the parent of Ray's processes, which die with it. Each command that uses the cluster holds a shared lock on the
users file; while nobody does, the cluster is idle.
Leaves to others: starting it and connecting (mlops/training/ray_cluster).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

from mlops.files import write_atomically
from mlops.training.ray_cluster import is_whole

LOOK_SECONDS = 2.0


def main() -> None:
    """Start Ray, write its address to the record, and wait for the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--temporary", type=Path, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--idle-seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    import ray  # loads for a second; the arguments are checked before

    context = ray.init(
        num_cpus=arguments.cpus,
        include_dashboard=False,
        _temp_dir=str(arguments.temporary),
        _node_ip_address="127.0.0.1",
        object_store_memory=128 * 1024 * 1024,
        log_to_driver=False,
        configure_logging=False,
    )
    record = {"address": context.address_info["gcs_address"], "pid": os.getpid(), "cpus": arguments.cpus}
    write_atomically(arguments.record, json.dumps({**record, "temporary": str(arguments.temporary)}))
    try:
        _wait_until_idle(arguments.users, record=arguments.record, idle_seconds=arguments.idle_seconds, ended=ended)
    finally:
        arguments.record.unlink(missing_ok=True)
        ray.shutdown()


def _wait_until_idle(users: Path, *, record: Path, idle_seconds: float, ended: threading.Event) -> None:
    """Return when told to end, when nobody used the cluster for so long, or when project or Ray are gone."""
    idle_since = time.monotonic()
    while not ended.wait(LOOK_SECONDS):
        if not record.exists() or not is_whole(os.getpid()):
            return
        if _is_used(users):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > idle_seconds:
            return


def _is_used(users: Path) -> bool:
    with contextlib.suppress(OSError), users.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


if __name__ == "__main__":
    main()
