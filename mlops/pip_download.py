"""pip's door: it downloads wheels, and leaves nothing in the home folder.

pip keeps a cache there, and asks `rustc` for its version, which under rustup writes settings there. What comes goes
into a store of the project, so no cache is missed; the user's configuration of pip, with its index, is read as ever.
Leaves to others: what is wanted, and verifying what came (mlops/datasets/sources.py, mlops/serving/python_wheels.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mlops.errors import EnvironmentFault

_OPTIONS = ("--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps")


def pip_download(*arguments: str, what: str, folder: Path, timeout_seconds: float) -> None:
    """Run `pip download` without dependencies in `folder`, where the files go.

    Args:
        arguments: Requirements and options of `pip download`.
        what: For messages.
        folder: Exists.
        timeout_seconds: pip is ended after this.

    Raises:
        EnvironmentFault: pip says no, its last words being the items, or gives no answer in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *_OPTIONS, "--dest", str(folder), *arguments],
            cwd=folder,
            env={**os.environ, "RUSTUP_HOME": str(folder / "rustup")},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"pip gave no answer in {timeout_seconds:g} s: download {what}") from error
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
        raise EnvironmentFault(
            f"pip could not download {what}",
            hint="check the network and pip's index settings, then run it again",
            items=tuple(said[-5:]),
        )
