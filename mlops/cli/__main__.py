"""`python -m mlops.cli` is `mlops`."""

from mlops.cli.start import run

run()
