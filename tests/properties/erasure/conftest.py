"""Erasure's fakes, for this layer of tests."""

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("erasure_fakes", Path(__file__).parents[2] / "erasure_fakes.py")
if "erasure_fakes" not in sys.modules:
    sys.modules["erasure_fakes"] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["erasure_fakes"])
