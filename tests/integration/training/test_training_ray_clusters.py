"""Tests with clusters of several raylets, in a process of their own: Ray keeps a process's first token for good."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILE = Path(__file__).with_name("clusters_in_own_process.py")
# Ray's own test cluster leaves its processes and log files to the garbage collector, which pytest hears at the end.
COMMAND = [
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:randomly",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::ResourceWarning",
]


@pytest.mark.timeout(900)
def test_clusters_in_a_process_of_their_own():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([*COMMAND, str(FILE)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "3 passed" in done.stdout, done.stdout
