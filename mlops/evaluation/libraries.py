"""Libraries that take seconds to load, and one that writes into the home folder when it is loaded.

The Adversarial Robustness Toolbox (ART) makes `~/.art`, which is nobody's to write, and which a confined check cannot
make when its project lies below the home folder: it gets another one for that moment.
Leaves to others: what is computed with them (mlops/evaluation/checks).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterable

_BEFORE_FORKS = {
    "evasion": ("art.attacks.evasion", "art.estimators.classification"),
    "membership": ("sklearn.ensemble",),
    "attribution": ("captum.attr",),
}
"""Kind of check to what it loads: once before the forks instead of once in each."""


def load_libraries(kinds: Iterable[str]) -> None:
    """Load what children would otherwise load one by one; what fails is left to the check that needs it."""
    for name in {name for kind in kinds for name in _BEFORE_FORKS.get(kind, ())}:
        with contextlib.suppress(Exception):
            if name.startswith("art."):
                prepare_art()
            importlib.import_module(name)


def prepare_art() -> None:
    """Call it before anything of ART is imported."""
    if "art.config" in sys.modules:
        return
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="mlops-home-") as folder:
        os.environ["HOME"] = folder
        try:
            importlib.import_module("art.config")
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home
