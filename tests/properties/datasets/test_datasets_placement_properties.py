import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.datasets.node_cache import choose_evictions
from mlops.datasets.placement import assign_groups

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))


@settings(max_examples=50 * SCALE, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=20), st.data())
def test_losing_a_node_moves_only_what_it_had(names, data):
    nodes = sorted(names)
    lost = data.draw(st.sampled_from(nodes))
    left = [node for node in nodes if node != lost]
    before = np.array(nodes)[assign_groups(nodes, groups=2048)]
    after = np.array(left)[assign_groups(left, groups=2048)]
    moved = before != after
    assert (before[moved] == lost).all()
    assert moved.sum() == (before == lost).sum()


@settings(max_examples=200 * SCALE, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 50), max_size=12),
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 9), max_size=12),
    st.integers(0, 100),
    st.integers(1, 300),
)
def test_evictions_make_room_and_keep_what_is_needed_soonest(sizes, next_use, needed, limit):
    gone = choose_evictions(sizes, next_use=next_use, needed_bytes=needed, limit_bytes=limit)
    kept = sizes.keys() - set(gone)
    room = sum(sizes[name] for name in kept) + needed
    assert room <= limit or not kept
    if gone:
        assert room + sizes[gone[-1]] > limit, "nothing goes without need"
        nearest = min(next_use.get(name, 10**9) for name in gone)
        assert all(next_use.get(name, 10**9) <= nearest for name in kept)
