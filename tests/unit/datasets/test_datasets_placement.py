import hashlib

import numpy as np
import pytest

from mlops.datasets.placement import assign_groups, canonical_group, canonical_groups, is_own, rank_nodes
from mlops.errors import DatasetError

NODES = [f"node-{number}" for number in range(16)]


def test_the_assignment_is_frozen():
    """Nodes of different mlops versions must agree: these numbers never change."""
    assert assign_groups(["a", "b", "c"], groups=12).tolist() == [1, 1, 2, 0, 2, 0, 2, 2, 2, 2, 2, 2]


def test_order_of_nodes_does_not_matter():
    first = [NODES[owner] for owner in assign_groups(NODES, groups=4096)]
    turned = NODES[::-1]
    assert [turned[owner] for owner in assign_groups(turned, groups=4096)] == first


def test_every_node_gets_about_its_share():
    counts = np.bincount(assign_groups(NODES), minlength=16)
    assert counts.min() > 0.9 * 4096 and counts.max() < 1.1 * 4096


def test_many_and_one_agree():
    digests = [f"{number:064x}"[::-1] for number in range(100)]
    prefixes = np.array([int(digest[:16], 16) for digest in digests], dtype=np.uint64)
    assert canonical_groups(prefixes).tolist() == [canonical_group(digest) for digest in digests]
    owners = assign_groups(NODES)
    assert sum(is_own(digests[0], node=node, owners=owners) for node in range(16)) == 1


@pytest.mark.parametrize("nodes", [[], ["a", "a"]])
def test_no_node_or_one_twice_is_refused(nodes):
    with pytest.raises(DatasetError):
        assign_groups(nodes)


def test_a_shard_is_asked_for_first_where_it_is_to_lie():
    nodes = [f"node-{number}" for number in range(7)]
    owners = assign_groups(nodes)
    for number in range(50):
        sha256 = hashlib.sha256(b"%d" % number).hexdigest()
        ranked = rank_nodes(nodes, sha256)
        assert ranked[0] == nodes[owners[canonical_group(sha256)]]
        assert sorted(ranked) == nodes
        assert rank_nodes([node for node in nodes if node != ranked[0]], sha256) == ranked[1:]
    assert rank_nodes([], sha256) == ()
