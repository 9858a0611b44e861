"""The deploy room's world, for this layer of tests."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("deploy_fakes", Path(__file__).parents[2] / "deploy_fakes.py")
if "deploy_fakes" not in sys.modules:
    sys.modules["deploy_fakes"] = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(sys.modules["deploy_fakes"])

from deploy_fakes import World, make_world  # noqa: E402


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made
