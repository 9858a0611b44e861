"""What every layer of tests shares."""

import os
import random

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before onnxruntime is imported anywhere
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

DEAR = ("income_clone", "digits_clone", "ray_home", "bakery")
"""Fixtures that take long to make: the tests that use one run in the same process."""
SLOW_LAYERS = ("integration", "properties")


def pytest_itemcollected(item: pytest.Item) -> None:
    """What runs together when several processes share the tests: users of a dear fixture, else a file."""
    dear = next((name for name in DEAR if name in getattr(item, "fixturenames", ())), None)
    item.add_marker(pytest.mark.xdist_group(dear or str(item.path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first, so that no process is left alone with them at the end; the order is random otherwise."""
    items.sort(key=lambda item: not set(SLOW_LAYERS) & set(item.path.parts))


@pytest.fixture(scope="session")
def test_scale() -> int:
    """How many times the default count of random cases: 1 in `make test`, more in `make test-long`."""
    return int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@pytest.fixture
def seeded_random() -> random.Random:
    return random.Random(20261122)
