"""Loading the Adversarial Robustness Toolbox writes nothing at home, and works where nothing can be made there."""

import os
import subprocess
import sys

LOAD = """
import sys
from pathlib import Path
from mlops.provenance.confinement import confine
confine(hidden=Path(sys.argv[1]))
from mlops.evaluation.libraries import prepare_art
prepare_art()
from art.attacks.evasion import FastGradientMethod
"""


def test_a_confined_check_of_a_project_below_the_home_folder_loads_it(tmp_path):
    keys = tmp_path / "project" / ".mlops" / "keys"
    keys.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(keys)],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".art").exists()
