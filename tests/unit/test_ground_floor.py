"""Clock, ids, places and processes."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.clock import FakeClock, render_time
from mlops.errors import ProjectError
from mlops.ids import CountingIds, TimeIds
from mlops.places import Places, find_root
from mlops.processes import collect_less


def test_a_fake_clock_sleeps_without_waiting_and_jumps_without_moving_the_monotonic_clock() -> None:
    clock = FakeClock(now_us=1_000_000)
    clock.sleep(2.5)
    clock.jump(-10)
    assert clock.now_us() == 1_000_000 + 2_500_000 - 10_000_000
    assert clock.monotonic_us() == 2_500_000


def test_times_are_rendered_in_utc() -> None:
    assert render_time(1_763_805_600_000_000) == "2025-11-22T10:00:00Z"


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    clock = FakeClock()
    ids = TimeIds(clock)
    first = {ids.new("sweep") for _ in range(100)}
    clock.advance(1)
    second = {ids.new("sweep") for _ in range(100)}
    assert len(first | second) == 200
    assert max(first) < min(second)
    assert CountingIds().new("sweep") == "sweep-1"


def test_the_root_is_the_nearest_folder_with_datasets_dvc(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "outer" / "datasets.dvc").touch()
    (tmp_path / "outer" / "inner" / "datasets.dvc").touch()
    assert find_root(inner) == tmp_path / "outer" / "inner"
    with pytest.raises(ProjectError, match="not inside a project"):
        find_root(Path("/"))


def test_products_are_the_sweep_specs(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    for name in ("income.yaml", "digits.yaml", "income.py"):
        (tmp_path / "training" / name).touch()
    assert Places(tmp_path).products() == ("digits", "income")


def test_objects_of_a_library_that_loads_are_not_searched_for_garbage_each_time() -> None:
    before = gc.get_threshold()
    runs = gc.get_stats()[0]["collections"]
    try:
        collect_less()
        kept = [[number] for number in range(40_000)]
    finally:
        gc.set_threshold(*before)
    assert gc.get_stats()[0]["collections"] - runs <= 1
    assert len(kept) == 40_000


def test_a_process_that_ends_does_not_take_its_objects_apart() -> None:
    """At least not those that only a search for garbage finds: half a million of them took seconds."""
    code = """if True:
        import atexit
        from mlops.processes import collect_less
        class Told:
            def __del__(self): print("taken apart")
        collect_less()
        ring = [Told()]
        ring.append(ring)
        atexit.register(print, "ended")
        """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split("\n") == ["ended", ""]
