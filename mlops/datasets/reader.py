"""Reading batches: the rows of the shard plan as torch tensors by column role.

Leaves to others: the order (mlops/datasets/plan.py), verified and decoded shards (mlops/datasets/node_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mlops.datasets.node_cache import NodeCache, flatten_column
from mlops.datasets.plan import WINDOW_ROWS, EpochPlan, Window, bound_step, count_steps, plan_epoch, verify_layout
from mlops.datasets.schema import Column, Schema
from mlops.datasets.version import DatasetVersion


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
        window_rows: Rows that are shuffled together and held at a time; part of the order, so fixed for a run.
    """

    def __init__(self, version: DatasetVersion, cache_folder: Path, *, window_rows: int = WINDOW_ROWS) -> None:
        self.version = version
        self._cache = NodeCache(cache_folder)
        self._window_rows = window_rows
        schema = version.schema
        used = {column.name: column for column in (*schema.features, *schema.sensitive, schema.label)}
        if schema.weight is not None:
            used[schema.weight.name] = schema.weight
        self._columns = tuple(used.values())
        self._held: tuple[tuple[str, tuple[int, ...]], dict[str, Tensor]] | None = None

    def count_rows(self, split: str) -> int:
        """Rows of a split."""
        return sum(shard.rows for shard in self.version.manifest.shards_of(split))

    def count_steps(self, split: str, *, batch_size: int) -> int:
        """Global batches of an epoch."""
        return count_steps(self.count_rows(split), batch_size=batch_size)

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
            batch_size: Rows of a GLOBAL batch; a multiple of `world_size`. The last batch takes the
                rest: up to 2·batch_size − 1 rows.
            seed: Of the run.
            epoch: From 0.
            rank: This worker.
            world_size: Number of workers.
            start_step: Batches already done.
            shuffle: Without, rows come in manifest order.

        Raises:
            DatasetError: Missing or changed shards, or a layout that would starve a rank.
        """
        shards = self.version.manifest.shards_of(split)
        plan = plan_epoch(
            tuple(shard.rows for shard in shards),
            digest=self.version.digest,
            split=split,
            seed=seed,
            epoch=epoch,
            shuffle=shuffle,
            window_rows=self._window_rows,
        )
        verify_layout(plan.rows, batch_size=batch_size, rank=rank, world_size=world_size)
        return self._iterate(split, plan, batch_size, (rank, world_size), start_step)

    def _iterate(
        self, split: str, plan: EpochPlan, batch_size: int, share: tuple[int, int], start_step: int
    ) -> Iterator[Batch]:
        rank, world_size = share
        parts: list[tuple[dict[str, Tensor], Tensor]] = []
        step = start_step
        for window in plan.windows:
            if step >= count_steps(plan.rows, batch_size=batch_size):
                return
            first, end = bound_step(plan.rows, batch_size=batch_size, step=step)
            if window.start + window.rows <= first:
                continue
            order = plan.order_window(window)
            while True:
                inside = np.arange(max(first, window.start), min(end, window.start + window.rows), dtype=np.int64)
                mine = inside[inside % world_size == rank]
                parts.append((self._take(split, plan, window, order[mine - window.start]), torch.from_numpy(mine)))
                if end > window.start + window.rows:
                    break  # the batch goes on in the next window
                yield self._join(parts)
                parts = []
                step += 1
                if step >= count_steps(plan.rows, batch_size=batch_size):
                    return
                first, end = bound_step(plan.rows, batch_size=batch_size, step=step)
                if first >= window.start + window.rows:
                    break

    def _take(self, split: str, plan: EpochPlan, window: Window, indices: np.ndarray) -> dict[str, Tensor]:
        """Some rows of a window, by their numbers in its concatenated shards."""
        held = self._hold(split, plan, window)
        picked = torch.from_numpy(indices)
        return {name: values[picked] for name, values in held.items()}

    def _hold(self, split: str, plan: EpochPlan, window: Window) -> dict[str, Tensor]:
        """All rows of a window as tensors; kept until another window is asked for."""
        key = (split, window.shards)
        if self._held is None or self._held[0] != key:
            self._held = None  # free the old window before loading the next
            self._held = (key, self._load(split, plan, window))
        return self._held[1]

    def _load(self, split: str, plan: EpochPlan, window: Window) -> dict[str, Tensor]:
        shards = self.version.manifest.shards_of(split)
        tables = [self._cache.open_shard(self.version, shards[number]) for number in window.shards]
        starts = np.concatenate([[0], np.cumsum(plan.shard_rows)])
        numbers = [np.arange(starts[number], starts[number + 1], dtype=np.int64) for number in window.shards]
        held: dict[str, Tensor] = {"": torch.from_numpy(np.concatenate(numbers))}
        for column in self._columns:
            pieces = [_as_array(table, column) for table in tables]
            held[column.name] = torch.from_numpy(np.concatenate(pieces))
        return held

    def _join(self, parts: list[tuple[dict[str, Tensor], Tensor]]) -> Batch:
        schema = self.version.schema
        positions = torch.cat([position for _, position in parts])
        columns = {name: torch.cat([values[name] for values, _ in parts]) for name in parts[0][0]}
        return Batch(
            features={column.name: columns[column.name] for column in schema.features},
            label=columns[schema.label.name],
            sensitive={column.name: columns[column.name] for column in schema.sensitive},
            weight=columns[schema.weight.name] if schema.weight is not None else None,
            positions=positions,
            rows=columns[""],
        )


def tensors_of_table(table: pa.Table, schema: Schema) -> dict[str, Tensor]:
    """The features of a table (`read_split`) as a model takes them: float32 [N], int64 [N] or float32 [N, *shape]."""
    columns = {column.name: flatten_column(table.column(column.name)) for column in schema.features}
    return {column.name: torch.tensor(_as_array(columns, column)) for column in schema.features}


def _as_array(table: Mapping[str, np.ndarray], column: Column) -> np.ndarray:
    values = table[column.name]
    return values.reshape(-1, *column.shape) if column.shape else values
