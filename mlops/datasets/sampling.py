"""Orders inside one window: shuffled, stratified by label, or drawn by weight; pure functions, chosen in one table.

Leaves to others: which shards make a window (plan.py) and their values (reader.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


def permutation(key: bytes, purpose: str, count: int) -> Indices:
    """A permutation of `count` that never changes with numpy's version: ranks of raw Philox output."""
    return np.argsort(_raw(key, purpose, count), kind="stable").astype(np.int64, copy=False)


def order_shuffled(key: bytes, purpose: str, *, labels: Indices, weights: Numbers) -> Indices:
    """Each row once, in random order."""
    return permutation(key, purpose, len(labels))


def order_stratified(key: bytes, purpose: str, *, labels: Indices, weights: Numbers) -> Indices:
    """Each row once, the labels spread evenly: any stretch has nearly the window's shares of labels.

    The i-th of n rows of a label stands at (i + u) / n of the window, with one random u per label.
    """
    shuffled = permutation(key, purpose, len(labels))
    places = np.empty(len(labels), dtype=np.float64)
    values = np.unique(labels)
    offsets = _fractions(key, f"{purpose} strata", len(values))
    for value, offset in zip(values, offsets, strict=True):
        mine = np.flatnonzero(labels[shuffled] == value)
        places[mine] = (np.arange(len(mine)) + offset) / len(mine)
    return shuffled[np.argsort(places, kind="stable")]


def order_weighted(key: bytes, purpose: str, *, labels: Indices, weights: Numbers) -> Indices:
    """As many draws as rows, each row in proportion to its weight (systematic sampling), in random order.

    A row of weight w comes floor or ceil of n·w/Σw times. Weights are not negative and not all zero.
    """
    count = len(weights)
    total = np.cumsum(weights)
    start = _fractions(key, f"{purpose} start", 1)[0]
    points = (np.arange(count) + start) * (total[-1] / count)
    drawn = np.minimum(np.searchsorted(total, points, side="right"), count - 1)
    return drawn[permutation(key, purpose, count)].astype(np.int64, copy=False)


ORDERS: dict[str, Callable[..., Indices]] = {
    "shuffled": order_shuffled,
    "stratified": order_stratified,
    "weighted": order_weighted,
}


def _raw(key: bytes, purpose: str, count: int) -> npt.NDArray[np.uint64]:
    seed = int.from_bytes(hashlib.sha256(key + purpose.encode()).digest()[:16], "big")
    raw: npt.NDArray[np.uint64] = np.random.Philox(key=seed).random_raw(count)
    return raw


def _fractions(key: bytes, purpose: str, count: int) -> Numbers:
    """Numbers in [0, 1)."""
    return (_raw(key, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
