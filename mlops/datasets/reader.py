"""Reading batches: the rows of the shard plan as torch tensors by column role.

Leaves to others: the order (mlops/datasets/plan.py), verification of bytes (mlops/datasets/version.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.datasets.version import DatasetVersion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's part of one global batch; B is its number of rows."""

    features: dict[str, Tensor]
    """Numbers float32 [B], categories int64 codes [B], tensors float32 [B, *shape]."""
    label: Tensor
    """int64 codes [B]."""
    sensitive: dict[str, Tensor]
    """int64 codes [B]."""
    weight: Tensor | None
    """float32 [B], when a column has the role `weight`."""
    positions: Tensor
    """int64 [B]: positions in the epoch's global order."""
    rows: Tensor
    """int64 [B]: row numbers of the split in manifest order; the same sample has the same number in every epoch."""


class ShardReader:
    """Reads one dataset version through a node-local cache of decoded shards.

    Args:
        version: What to read.
        cache_folder: Shared by all workers and trials of a node; decoded shards as memory-mapped Arrow.
    """

    def __init__(self, version: DatasetVersion, cache_folder: Path) -> None:
        self.version = version
        self._cache_folder = cache_folder

    def count_rows(self, split: str) -> int:
        """Rows of a split."""
        return sum(shard.rows for shard in self.version.manifest.shards_of(split))

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        shuffle: bool = True,
    ) -> Iterator[Batch]:
        """This rank's parts of the global batches, from step `start_step` on.

        Args:
            split: Which split.
            batch_size: Rows of a GLOBAL batch; a multiple of `world_size`. The last batch takes the rest: up to 2·batch_size − 1.
            seed: Of the run.
            epoch: From 0.
            rank: This worker.
            world_size: Number of workers.
            start_step: Batches already done.
            shuffle: Without, rows come in manifest order.

        Raises:
            DatasetError: Missing or changed shards, or a layout that would starve a rank.
        """
        raise NotImplementedError
