"""The shard plan: which row comes when, as a pure function of (manifest, split, seed, epoch); no I/O.

The one global order of an epoch does not know the world size: rank r of W takes the positions ≡ r mod W of every global
batch, so any W that divides the batch size sees the same batches. Shards are shuffled whole, then rows are shuffled
inside windows of consecutive shards, so a reader holds one window at a time. The state of a run is constant-size:
(manifest digest, selection digest, seed, epoch, step), see `PlanState`.

Uneven ends: a last batch smaller than `batch_size` is joined to the one before it (so the last batch has up to
2·batch_size − 1 rows): every row is read once, ranks differ by at most one row and none starves, whatever W.
Leaves to others: reading rows (mlops/datasets/reader.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mlops.datasets.sampling import ORDERS, Indices, Numbers, permutation
from mlops.errors import DatasetError

WINDOW_ROWS = 65_536
"""Rows shuffled together by default; a split up to this size is shuffled perfectly."""


@dataclass(frozen=True)
class PlanState:
    """Where a run stands in its data: constant-size, the same for every world size."""

    digest: str
    """Of the manifest."""
    selection: str
    """Digest of the selection."""
    split: str
    seed: int
    epoch: int
    step: int
    """Global batches done in this epoch."""


@dataclass(frozen=True)
class Window:
    """Consecutive shards of an epoch's order whose rows are shuffled together."""

    number: int
    shards: tuple[int, ...]
    """Numbers of shards in manifest order of the split, ascending."""
    start: int
    """Position of its first row in the global order."""
    rows: int


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of one split."""

    shard_rows: tuple[int, ...]
    """Rows of each shard, in manifest order of the split."""
    windows: tuple[Window, ...]
    key: bytes
    """Seeds every shuffle of this epoch."""
    is_shuffled: bool

    @property
    def rows(self) -> int:
        """Rows of the epoch."""
        return sum(self.shard_rows)

    def order_window(
        self, window: Window, *, order: str = "shuffled", labels: Indices | None = None, weights: Numbers | None = None
    ) -> Indices:
        """Row numbers in the window's concatenated shards, in reading order.

        Args:
            window: Of this plan.
            order: A name in `mlops.datasets.sampling.ORDERS`.
            labels: Label code of each row; for `stratified`.
            weights: Weight of each row; for `weighted`.
        """
        if not self.is_shuffled:
            return np.arange(window.rows, dtype=np.int64)
        known = labels if labels is not None else np.zeros(window.rows, dtype=np.int64)
        weighed = weights if weights is not None else np.ones(window.rows)
        return ORDERS[order](self.key, f"window {window.number}", labels=known, weights=weighed)


def plan_epoch(
    shard_rows: tuple[int, ...],
    *,
    digest: str,
    split: str,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    window_rows: int = WINDOW_ROWS,
    selection: str = "",
) -> EpochPlan:
    """Cut an epoch into windows.

    Args:
        shard_rows: Rows of each shard of the split, in manifest order.
        digest: Manifest digest; another version has another order.
        split: Name of the split.
        seed: Of the run.
        epoch: From 0.
        shuffle: Whether to shuffle; without, rows come in manifest order.
        window_rows: Rows held and shuffled together; a single larger shard is one window.
        selection: Digest of the selection; empty when all rows take part.
    """
    text = f"plan 1\n{digest}\n{split}\n{seed}\n{epoch}" + (f"\n{selection}" if selection else "")
    key = hashlib.sha256(text.encode()).digest()
    order = permutation(key, "shards", len(shard_rows)) if shuffle else np.arange(len(shard_rows), dtype=np.int64)
    ends = np.cumsum(np.asarray(shard_rows, dtype=np.int64)[order])
    windows: list[Window] = []
    first, start = 0, 0
    while first < len(order):
        # As many shards as fit, one at least.
        last = max(first + 1, int(np.searchsorted(ends, start + window_rows, side="right")))
        end = int(ends[last - 1])
        windows.append(Window(len(windows), tuple(sorted(order[first:last].tolist())), start, end - start))
        first, start = last, end
    return EpochPlan(shard_rows=shard_rows, windows=tuple(windows), key=key, is_shuffled=shuffle)


def count_steps(rows: int, *, batch_size: int) -> int:
    """Global batches of an epoch: the rest joins the last one."""
    return max(1, rows // batch_size) if rows else 0


def bound_step(rows: int, *, batch_size: int, step: int) -> tuple[int, int]:
    """Global positions `[first, end)` of a step's batch."""
    steps = count_steps(rows, batch_size=batch_size)
    return step * batch_size, rows if step == steps - 1 else (step + 1) * batch_size


def verify_layout(rows: int, *, batch_size: int, rank: int, world_size: int) -> None:
    """Refuse what would starve a rank or change the order.

    Raises:
        DatasetError: The world size does not divide the batch size, or there are fewer rows than ranks.
    """
    if not 0 <= rank < world_size:
        raise DatasetError(f"rank {rank} is not below world size {world_size}")
    if batch_size < 1 or batch_size % world_size:
        raise DatasetError(
            f"global batch size {batch_size} cannot be shared equally by {world_size} workers",
            hint=f"choose a multiple of {world_size}",
        )
    if rows < world_size:
        raise DatasetError(f"{rows} rows cannot feed {world_size} workers", hint="use fewer workers or more rows")
