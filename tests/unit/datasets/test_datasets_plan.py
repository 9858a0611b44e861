import pytest

from mlops.datasets.plan import bound_step, count_steps, plan_epoch, verify_layout
from mlops.datasets.sampling import permutation
from mlops.errors import DatasetError


def test_the_order_is_frozen():
    """A changed shuffle would make every recorded run unrepeatable: these numbers never change."""
    assert permutation(b"key", "shards", 8).tolist() == [7, 3, 5, 4, 6, 1, 2, 0]


def test_the_rest_joins_the_last_batch():
    assert [bound_step(23, batch_size=5, step=step) for step in range(count_steps(23, batch_size=5))] == [
        (0, 5),
        (5, 10),
        (10, 15),
        (15, 23),
    ]
    assert count_steps(3, batch_size=5) == 1
    assert bound_step(3, batch_size=5, step=0) == (0, 3)


def test_seed_epoch_digest_and_split_each_change_the_order():
    arguments = {"digest": "a", "split": "train", "seed": 1, "epoch": 0}
    first = plan_epoch((50,), **arguments)
    order = first.order_window(first.windows[0]).tolist()
    for change in ({"digest": "b"}, {"split": "test"}, {"seed": 2}, {"epoch": 1}):
        plan = plan_epoch((50,), **{**arguments, **change})
        assert plan.order_window(plan.windows[0]).tolist() != order, change


def test_windows_hold_no_more_rows_than_stated_unless_one_shard_does():
    plan = plan_epoch((10, 10, 10, 90, 10), digest="a", split="s", seed=0, epoch=0, window_rows=20)
    assert all(window.rows <= 20 or len(window.shards) == 1 for window in plan.windows)
    assert sorted(number for window in plan.windows for number in window.shards) == [0, 1, 2, 3, 4]


def test_without_shuffle_rows_come_in_manifest_order():
    plan = plan_epoch((2, 3), digest="a", split="s", seed=0, epoch=5, shuffle=False)
    assert [plan.order_window(window).tolist() for window in plan.windows] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "rank", "world_size", "words"),
    [
        (100, 10, 0, 3, "cannot be shared equally"),
        (100, 0, 0, 1, "cannot be shared equally"),
        (2, 4, 0, 4, "cannot feed"),
        (100, 10, 2, 2, "is not below"),
    ],
)
def test_a_layout_is_refused_that_would_starve_a_rank(rows, batch_size, rank, world_size, words):
    with pytest.raises(DatasetError, match=words):
        verify_layout(rows, batch_size=batch_size, rank=rank, world_size=world_size)
