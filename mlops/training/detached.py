"""A sweep whose driver outlives the command: a process of its own session on this machine, or a Ray Job on a cluster.

Where it runs changes nothing for `list`, `show`, `stop` and `resume`: they read the ledger.
Leaves to others: submitting to Ray (mlops/training/ray_jobs), the driver itself (`mlops sweep launch`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mlops.errors import EnvironmentFault
from mlops.places import Places
from mlops.provenance.digest import digest_file

EXPECTED_LOCK = "MLOPS_EXPECTED_LOCK"
"""Environment variable of a shipped driver: digest of the lock it was launched with."""
_NOT_SHIPPED = (".mlops", ".venv", "datasets/*/", "**/__pycache__")


class Jobs(Protocol):
    """Where drivers are submitted to (`mlops.training.ray_jobs.RayJobs` is one)."""

    def submit(self, entrypoint: str, *, job_id: str, runtime_env: dict[str, object], tags: dict[str, str]) -> str:
        """Begin a job; gives its id."""
        ...


def spawn_driver(places: Places, command: Sequence[str], *, sweep_id: str) -> tuple[int, Path]:
    """Start the driver in a session of its own; gives its process id and its log.

    Args:
        places: The project.
        command: Arguments of `mlops`.
        sweep_id: Names the log.
    """
    log = places.state / "sweeps" / f"{sweep_id}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            (sys.executable, "-m", "mlops.cli", *command), cwd=places.root, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=stream, start_new_session=True,
        )  # fmt: skip
    process.returncode = 0  # it is nobody's child to wait for: it outlives this command
    return process.pid, log


def ship_driver(places: Places, jobs: Jobs, command: Sequence[str], *, sweep_id: str, ledger_url: str) -> str:
    """Submit the driver with the working directory and the digest of the lock; gives the job's id.

    Raises:
        EnvironmentFault: The ledger is a file of this machine, which a cluster cannot reach.
    """
    if ledger_url.startswith("sqlite"):
        raise EnvironmentFault(
            "a driver on a cluster cannot reach a ledger that is a file here",
            hint="name a PostgreSQL ledger in MLOPS_LEDGER, or detach on this machine by unsetting RAY_ADDRESS",
        )
    lock = digest_file(places.lock_file)
    runtime_env: dict[str, object] = {
        "working_dir": str(places.root),
        "excludes": list(_NOT_SHIPPED),
        "env_vars": {EXPECTED_LOCK: lock, "MLOPS_LEDGER": ledger_url},
    }
    entrypoint = " ".join(("python", "-m", "mlops.cli", *command))
    return jobs.submit(entrypoint, job_id=sweep_id, runtime_env=runtime_env, tags={"mlops.lock": lock})


def require_expected_lock(places: Places) -> None:
    """A shipped driver runs with the lock it was launched with, or not at all.

    Raises:
        EnvironmentFault: It is another one.
    """
    expected = os.environ.get(EXPECTED_LOCK)
    if expected and (not places.lock_file.is_file() or digest_file(places.lock_file) != expected):
        raise EnvironmentFault(
            f"{places.lock_file.name} is not the lock that this sweep was launched with ({expected[7:19]})",
            hint="launch again from a clean working directory",
        )
