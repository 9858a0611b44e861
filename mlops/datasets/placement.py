"""Which node holds which shard: shards → canonical groups → nodes, by rendezvous hashing on stable node ids.

Pure, and needs no per-shard table: a node can tell of any shard whether it is its own. Losing a node moves only what
that node had; adding one takes an equal share from each. Placement decides who fetches, never the order of rows.
Leaves to others: fetching (node_cache.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlops.errors import DatasetError

CANONICAL_GROUPS = 65_536
"""Fixed for good: 64 groups for each of 1,024 nodes keep the largest share within about 40 % of the mean."""
_BLOCK = 64


def canonical_group(sha256: str, *, groups: int = CANONICAL_GROUPS) -> int:
    """Canonical group of a shard, by its own digest."""
    return int(sha256[:16], 16) % groups


def canonical_groups(prefixes: npt.NDArray[np.uint64], *, groups: int = CANONICAL_GROUPS) -> npt.NDArray[np.int32]:
    """Canonical groups of many shards, by the first 8 bytes of their digests."""
    return (prefixes % np.uint64(groups)).astype(np.int32)


def assign_groups(nodes: Sequence[str], *, groups: int = CANONICAL_GROUPS) -> npt.NDArray[np.int32]:
    """Node (position in `nodes`) of each canonical group: the one with the highest score.

    Args:
        nodes: Stable ids, each once; their order does not matter to who gets what.
        groups: How many canonical groups.

    Raises:
        DatasetError: No node, or an id given twice.
    """
    if not nodes or len(set(nodes)) != len(nodes):
        raise DatasetError("placement needs at least one node, and each id once", items=tuple(nodes[:10]))
    seeds = np.array([_seed(node) for node in nodes], dtype=np.uint64)
    owners = np.empty(groups, dtype=np.int32)
    for start in range(0, groups, _BLOCK):  # a block of scores fits the processor's cache
        block = np.arange(start, min(start + _BLOCK, groups), dtype=np.uint64)
        owners[start : start + _BLOCK] = np.argmax(_mix(_mix(block)[:, None] ^ seeds[None, :]), axis=1)
    return owners


def rank_nodes(nodes: Sequence[str], sha256: str) -> tuple[str, ...]:
    """Nodes in the order in which a shard is asked for: the one that is to hold it first, then the next best."""
    if not nodes:
        return ()
    group = np.array([canonical_group(sha256)], dtype=np.uint64)
    scores = _mix(_mix(group) ^ np.array([_seed(node) for node in nodes], dtype=np.uint64))
    return tuple(nodes[place] for place in np.argsort(scores, kind="stable")[::-1])


def is_own(sha256: str, *, node: int, owners: npt.NDArray[np.int32]) -> bool:
    """Whether a shard is to be held by a node."""
    return bool(owners[canonical_group(sha256, groups=len(owners))] == node)


def _seed(node: str) -> int:
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:8], "big")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
