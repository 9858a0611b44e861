"""The same small project as in the unit tests: there is one builder."""

import runpy
from pathlib import Path

globals().update(
    {
        name: value
        for name, value in runpy.run_path(
            str(Path(__file__).parents[2] / "unit" / "datasets" / "conftest.py"), run_name="datasets_conftest"
        ).items()
        if not name.startswith("__")
    }
)
