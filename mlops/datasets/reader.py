"""Reading batches: the rows of the shard plan as torch tensors by column role, ahead of the compute.

One thread loads the next window while another puts the next batches together from this one, so memory holds two windows
and `BATCHES_AHEAD` batches. `take_wait_seconds` tells how long the reader kept its caller waiting.
Leaves to others: the order (plan.py, sampling.py), verified and decoded shards (node_cache.py), reporting the wait
(mlops/training).
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mlops.datasets.manifest import Shard, digest_shards
from mlops.datasets.node_cache import NodeCache, flatten_column
from mlops.datasets.plan import WINDOW_ROWS, EpochPlan, Window, bound_step, count_steps, plan_epoch, verify_layout
from mlops.datasets.sampling import ORDERS
from mlops.datasets.schema import SUBJECT_COLUMN, Column, Schema
from mlops.datasets.selection import Selection, select_rows
from mlops.datasets.version import DatasetVersion, read_shard
from mlops.errors import DatasetError

Columns = dict[str, np.ndarray]
CHEAP_SECONDS = 0.0002
"""Batches that take less of a core to put together are made when they are asked for: waking a thread costs as much."""
BATCHES_AHEAD = 2
"""Batches that are put together while the caller computes."""
_ROWS = ""
"""Key of the row numbers among a window's columns; no column has this name."""


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

    def map_columns(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every column changed: moved, pinned; positions and row numbers stay on the host."""
        return replace(
            self,
            features={name: change(column) for name, column in self.features.items()},
            label=change(self.label),
            sensitive={name: change(column) for name, column in self.sensitive.items()},
            weight=None if self.weight is None else change(self.weight),
        )


@dataclass(frozen=True)
class _Run:
    """One iteration over a split: what takes part, in which order, and whose part."""

    split: str
    shards: tuple[Shard, ...]
    taken: tuple[np.ndarray | None, ...]
    """Of each shard, the rows that take part; None is all."""
    plan: EpochPlan
    batch_size: int
    rank: int
    world_size: int
    order: str
    finish: Callable[[Batch], Batch]
    """Done to each batch ahead of its use."""

    def bound(self, step: int) -> tuple[int, int] | None:
        """Global positions of a step's batch; None after the last."""
        if step >= count_steps(self.plan.rows, batch_size=self.batch_size):
            return None
        return bound_step(self.plan.rows, batch_size=self.batch_size, step=step)


class ShardReader:
    """Reads one dataset version through a node-local cache of decoded shards.

    Args:
        version: What to read.
        cache_folder: Shared by all workers and trials of a node; decoded shards as memory-mapped Arrow.
        window_rows: Rows that are shuffled together and held at a time; part of the order, so fixed for a run.
        cache_bytes: Limit of the node cache; None has none.
        selection: Which rows take part; None is all.
        pin_tensor: Puts a tensor into page-locked memory.
    """

    def __init__(
        self,
        version: DatasetVersion,
        cache_folder: Path,
        *,
        window_rows: int = WINDOW_ROWS,
        cache_bytes: int | None = None,
        selection: Selection | None = None,
        pin_tensor: Callable[[Tensor], Tensor] = Tensor.pin_memory,
    ) -> None:
        self.version = version
        self._cache = NodeCache(cache_folder, limit_bytes=cache_bytes)
        self._window_rows = window_rows
        self._selection = selection or Selection()
        self._pin_tensor = pin_tensor
        schema = version.schema
        used = {column.name: column for column in (*schema.features, *schema.sensitive, schema.label)}
        if schema.weight is not None:
            used[schema.weight.name] = schema.weight
        self._columns = tuple(used.values())
        self._held: dict[str, tuple[tuple[int, ...], Columns]] = {}
        """Split to the shards of the window that was last used, and its rows."""
        self._taken: dict[str, tuple[tuple[Shard, ...], tuple[np.ndarray | None, ...]]] = {}
        self._wait_seconds = 0.0
        self._seconds_each: dict[tuple[str, int, bool], float] = {}
        """By split, batch size and pinning: what a batch took of a core, in the pass before."""

    def of_groups(self, groups: frozenset[int]) -> ShardReader:
        """A reader of the same version and cache in which only these isolation groups take part."""
        narrowed = copy.copy(self)
        narrowed._selection = replace(self._selection, groups=groups)
        narrowed._taken, narrowed._held, narrowed._seconds_each = {}, {}, {}
        return narrowed

    def count_rows(self, split: str) -> int:
        """Rows of a split that take part."""
        shards, taken = self._select(split)
        return sum(_count(shard, rows) for shard, rows in zip(shards, taken, strict=True))

    def count_steps(self, split: str, *, batch_size: int) -> int:
        """Global batches of an epoch."""
        return count_steps(self.count_rows(split), batch_size=batch_size)

    def take_wait_seconds(self) -> float:
        """Seconds that the caller waited for rows since the last time this was asked."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

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
        order: str = "shuffled",
        pin: bool = False,
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
            order: `shuffled`; `stratified` spreads labels evenly; `weighted` draws by the `weight` column, with
                replacement inside a window.
            pin: Whether batches lie in page-locked memory, from which a CUDA device copies while it computes.

        Raises:
            DatasetError: Missing or changed shards, or a layout that would starve a rank.
        """
        if order not in ORDERS or (order == "weighted" and self.version.schema.weight is None):
            raise DatasetError(
                f"order {order!r} of dataset {self.version.name}",
                hint=f"known orders: {', '.join(ORDERS)}; `weighted` needs a column with the role `weight`",
            )
        shards, taken = self._select(split)
        plan = plan_epoch(
            tuple(_count(shard, rows) for shard, rows in zip(shards, taken, strict=True)),
            digest=self._digest_of(shards),
            split=split,
            seed=seed,
            epoch=epoch,
            shuffle=shuffle,
            window_rows=self._window_rows,
            selection=self._selection.digest if self._selection != Selection() else "",
        )
        verify_layout(plan.rows, batch_size=batch_size, rank=rank, world_size=world_size)
        run = _Run(split, shards, taken, plan, batch_size, rank, world_size, order, self._pin if pin else _as_it_is)
        like = (split, batch_size, pin)
        batches = self._iterate(run, start_step)
        if self._seconds_each.get(like, CHEAP_SECONDS) < CHEAP_SECONDS:
            return self._as_asked(batches)
        return self._ahead(batches, like)

    def _digest_of(self, shards: tuple[Shard, ...]) -> str:
        """What the order depends on: the version, or with chosen groups only their shards.

        So a change in one group leaves the order of the others as it was, in every later version.
        """
        if self._selection.groups is None:
            return self.version.digest
        return digest_shards(shards)

    def _select(self, split: str) -> tuple[tuple[Shard, ...], tuple[np.ndarray | None, ...]]:
        """Shards of a split that take part, and of each the rows (None: all)."""
        if split not in self._taken:
            groups = self._selection.groups
            all_shards = self.version.manifest.shards_of(split)
            shards = tuple(shard for shard in all_shards if groups is None or shard.group in groups)
            taken: tuple[np.ndarray | None, ...] = (None,) * len(shards)
            if self._selection.needs_subjects:
                taken = tuple(self._select_in(shard) for shard in shards)
            self._taken[split] = (shards, taken)
        return self._taken[split]

    def _starts(self, split: str) -> dict[str, int]:
        """Row number of each shard's first row, counting the whole split, whatever takes part."""
        starts, rows = {}, 0
        for shard in self.version.manifest.shards_of(split):
            starts[shard.relpath] = rows
            rows += shard.rows
        return starts

    def _select_in(self, shard: Shard) -> np.ndarray:
        table = read_shard(self.version, shard, columns=[SUBJECT_COLUMN])
        return select_rows(self._selection, table.column(SUBJECT_COLUMN).to_pylist())

    def _as_asked(self, batches: Generator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that making them takes is counted."""
        with contextlib.closing(batches):  # also when the caller stops early
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self._wait_seconds += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    def _ahead(self, batches: Generator[Batch], like: tuple[str, int, bool]) -> Iterator[Batch]:
        """The same batches, made by a thread; the time that the caller waits for one is counted."""
        taken: list[float] = []

        def make() -> Batch | None:
            started = time.thread_time()
            batch = next(batches, None)
            taken.append(time.thread_time() - started)
            return batch

        with ThreadPoolExecutor(1, thread_name_prefix="batches-ahead") as pool:
            try:
                coming = deque(pool.submit(make) for _ in range(BATCHES_AHEAD))
                while True:
                    started = time.perf_counter()
                    batch = coming.popleft().result()
                    self._wait_seconds += time.perf_counter() - started
                    if batch is None:
                        return
                    coming.append(pool.submit(make))
                    yield batch
            finally:  # also when the caller stops early
                pool.shutdown(cancel_futures=True)
                batches.close()
                self._seconds_each[like] = statistics.median(taken or [CHEAP_SECONDS])

    def _iterate(self, run: _Run, start_step: int) -> Generator[Batch]:
        step, bound = start_step, run.bound(start_step)
        parts: list[tuple[Columns, np.ndarray]] = []
        for window, held in self._windows(run, start_step):
            end_of_window = window.start + window.rows
            order = self._order(run, window, held)
            while bound is not None and bound[0] < end_of_window:
                inside = np.arange(max(bound[0], window.start), min(bound[1], end_of_window), dtype=np.int64)
                mine = inside[inside % run.world_size == run.rank]
                parts.append((_pick(held, mine - window.start, order), mine))
                if bound[1] > end_of_window:
                    break  # the batch goes on in the next window
                yield run.finish(self._join(parts))
                parts = []
                step += 1
                bound = run.bound(step)

    def _windows(self, run: _Run, start_step: int) -> Iterator[tuple[Window, Columns]]:
        """Windows that are still to be read, each with its rows; the next is loaded while one is used."""
        first = run.bound(start_step)
        if first is None:
            return
        windows = [window for window in run.plan.windows if window.start + window.rows > first[0] and window.rows]
        with ThreadPoolExecutor(1, thread_name_prefix="shard-reader") as pool:
            ahead: Future[Columns] | None = None
            for number, window in enumerate(windows):
                held = ahead.result() if ahead is not None else self._load(run, window, windows[number:])
                if len(run.plan.windows) > 1:  # a large split is held alone
                    self._held.clear()
                self._held[run.split] = (window.shards, held)
                following = windows[number + 1 :]
                ahead = pool.submit(self._load, run, following[0], following) if following else None
                yield window, held

    def _load(self, run: _Run, window: Window, upcoming: list[Window]) -> Columns:
        """All rows of a window; those held from the iteration before are used again."""
        shards, rows_before = self._held.get(run.split, ((), {}))
        if shards == window.shards:
            return rows_before
        next_use = {run.shards[number].sha256: place for place, w in enumerate(upcoming) for number in w.shards}
        tables = [
            self._cache.open_shard(self.version, run.shards[number], next_use=next_use) for number in window.shards
        ]
        starts = self._starts(run.split)
        taken = [run.taken[number] for number in window.shards]
        rows = [
            starts[run.shards[number].relpath] + (np.arange(run.shards[number].rows) if part is None else part)
            for number, part in zip(window.shards, taken, strict=True)
        ]
        held: Columns = {_ROWS: np.concatenate(rows).astype(np.int64, copy=False)}
        for column in self._columns:
            pieces = [_as_array(table, column) for table in tables]
            chosen = [piece if part is None else piece[part] for piece, part in zip(pieces, taken, strict=True)]
            held[column.name] = np.concatenate(chosen)
        return held

    def _order(self, run: _Run, window: Window, held: Columns) -> np.ndarray | None:
        """Row numbers of the window in reading order; None when they come as they lie."""
        if not run.plan.is_shuffled:
            return None
        schema = self.version.schema
        weights = held[schema.weight.name].astype(np.float64) if schema.weight is not None else None
        if run.order == "weighted" and weights is not None and not (weights.min() >= 0 and weights.sum() > 0):
            raise DatasetError(
                f"weights of dataset {self.version.name} are negative, or all zero in a window of {window.rows} rows",
                hint="give the weight column a `minimum: 0` and spread weightless rows, or use another order",
            )
        return run.plan.order_window(window, order=run.order, labels=held[schema.label.name], weights=weights)

    def _pin(self, batch: Batch) -> Batch:
        return batch.map_columns(self._pin_tensor)

    def _join(self, parts: list[tuple[Columns, np.ndarray]]) -> Batch:
        schema = self.version.schema
        columns = {
            name: torch.from_numpy(
                parts[0][0][name] if len(parts) == 1 else np.concatenate([p[name] for p, _ in parts])
            )
            for name in parts[0][0]
        }
        return Batch(
            features={column.name: columns[column.name] for column in schema.features},
            label=columns[schema.label.name],
            sensitive={column.name: columns[column.name] for column in schema.sensitive},
            weight=columns[schema.weight.name] if schema.weight is not None else None,
            positions=torch.from_numpy(np.concatenate([positions for _, positions in parts])),
            rows=columns[_ROWS],
        )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _pick(held: Columns, inside: np.ndarray, order: np.ndarray | None) -> Columns:
    """Copies of some rows of a window (a trainer may change its batch), by their places in the reading order.

    numpy on one thread: torch's indexing starts a team of threads for every column and waits for it.
    """
    if order is not None:
        numbers = order[inside]
        return {name: values.take(numbers, axis=0, mode="clip") for name, values in held.items()}  # without the GIL
    if not len(inside):
        return {name: values[:0] for name, values in held.items()}
    step = int(inside[1] - inside[0]) if len(inside) > 1 else 1
    stretch = slice(int(inside[0]), int(inside[-1]) + 1, step)
    return {name: values[stretch].copy() for name, values in held.items()}


def tensors_of_table(table: pa.Table, schema: Schema) -> dict[str, Tensor]:
    """The features of a table (`read_split`) as a model takes them: float32 [N], int64 [N] or float32 [N, *shape]."""
    columns = {column.name: flatten_column(table.column(column.name)) for column in schema.features}
    return {column.name: torch.tensor(_as_array(columns, column)) for column in schema.features}


def _count(shard: Shard, rows: np.ndarray | None) -> int:
    return shard.rows if rows is None else len(rows)


def _as_array(table: Mapping[str, np.ndarray], column: Column) -> np.ndarray:
    values = table[column.name]
    return values.reshape(-1, *column.shape) if column.shape else values
