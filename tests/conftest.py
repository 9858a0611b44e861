"""What every layer of tests shares."""

import gc
import os
import random
import sys

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must stand before onnxruntime is imported anywhere
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
gc.set_threshold(20_000, 20, 20)  # the young are looked through less often than they are made


MANY = 100
"""Modules; torch, mlflow and their like have more."""
frozen = pytest.StashKey[int]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Take libraries that were loaded out of the garbage collector's sight: a tenth of all computing was its walks."""
    stash = item.config.stash
    if len(sys.modules) > stash.get(frozen, 0) + MANY:
        gc.collect()
        gc.freeze()
        stash[frozen] = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what forks: once autograd has started threads in this process, torch refuses it in children of it."""
    items.sort(key=lambda item: {"judge_hearing", "ForkCrew"}.isdisjoint(vars(getattr(item, "module", None) or object)))


@pytest.fixture(scope="session")
def test_scale() -> int:
    """How many times the default count of random cases: 1 in `make test`, more in `make test-long`."""
    return int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@pytest.fixture
def seeded_random() -> random.Random:
    return random.Random(20261122)
