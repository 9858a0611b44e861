"""What every layer of tests shares."""

import os
import random

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before onnxruntime is imported anywhere
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def test_scale() -> int:
    """How many times the default count of random cases: 1 in `make test`, more in `make test-long`."""
    return int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@pytest.fixture
def seeded_random() -> random.Random:
    return random.Random(20261122)
