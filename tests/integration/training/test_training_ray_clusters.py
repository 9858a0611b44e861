"""Tests with clusters of several raylets, each in a process of its own: Ray keeps a process's first token for good."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILE = Path(__file__).with_name("clusters_in_own_process.py")
NAMES = ["test_a_node_lost", "test_a_group_takes_whole", "test_a_sweep_on_a_cluster_of_its_own"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["test_a_node_lost", "test_a_group_takes_whole", "test_a_sweep_on_a_cluster_of_its_own"]
)
def test_in_a_process_of_its_own(name):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-k",
        name,
        str(FILE),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout or "[100%]" in done.stdout
