"""One order for all: exactly once, the same for every world size, and the same after every kill."""

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.datasets.plan import bound_step, count_steps, plan_epoch

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
plans = st.builds(
    lambda rows, seed, epoch, window_rows, shuffle: plan_epoch(
        tuple(rows), digest="d", split="train", seed=seed, epoch=epoch, window_rows=window_rows, shuffle=shuffle
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(0, 2**63),
    st.integers(0, 1000),
    st.integers(1, 200),
    st.booleans(),
)


def global_order(plan):
    """Row numbers in reading order, worked out the slow way: the whole epoch at once."""
    starts = np.concatenate([[0], np.cumsum(plan.shard_rows)])
    order = []
    for window in plan.windows:
        rows = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in window.shards])
        order.extend(rows[plan.order_window(window)].tolist())
    return order


@settings(max_examples=200 * SCALE, deadline=None)
@given(plans)
def test_each_row_comes_exactly_once(plan):
    assert sorted(global_order(plan)) == list(range(plan.rows))
    assert [window.start for window in plan.windows] == list(np.cumsum([0, *[w.rows for w in plan.windows]])[:-1])


@settings(max_examples=200 * SCALE, deadline=None)
@given(plans, st.integers(1, 64), st.integers(1, 4), st.data())
def test_all_world_sizes_and_kill_points_see_the_same_batches(plan, world_size, share, data):
    """A run is killed at any step and goes on with another world size: its batches are those of the whole run."""
    batch_size = world_size * share
    order = np.array(global_order(plan))
    steps = count_steps(plan.rows, batch_size=batch_size)
    killed_at = data.draw(st.integers(0, steps))
    divisors = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    seen = []
    for step in range(steps):
        size = world_size if step < killed_at else data.draw(st.sampled_from(divisors), label="new world size")
        first, end = bound_step(plan.rows, batch_size=batch_size, step=step)
        positions = np.arange(first, end)
        parts = [positions[positions % size == rank] for rank in range(size)]
        if plan.rows >= size:
            assert min(map(len, parts)) >= 1, "a rank starves"
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        seen.extend(order[np.sort(np.concatenate(parts))].tolist())
    assert seen == order.tolist()


@settings(max_examples=100 * SCALE, deadline=None)
@given(plans)
def test_the_same_arguments_give_the_same_plan(plan):
    assert global_order(plan) == global_order(plan)
