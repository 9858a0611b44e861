"""`python -m mlops.cli` is `mlops`."""

from mlops.cli.main import run

run()
