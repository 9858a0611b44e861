"""The node cache: decoded shards as memory-mapped Arrow files, named by the shard's sha256, shared by all processes.

A content-addressed name never goes stale, so there is no invalidation: a file is there whole (rename) or not at all.
With a limit, what is used furthest in the future goes first (Belady), since the plan knows the next use; LRU would
throw out exactly what an epoch needs next. A file that goes while another process has it mapped stays readable there.
Leaves to others: which shard is read when (plan.py), where its object lies (version.py), on which node (placement.py).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlops.datasets.manifest import Shard
from mlops.datasets.version import DatasetVersion, read_shard
from mlops.errors import EnvironmentFault


class NodeCache:
    """Decoded shards of one node.

    Args:
        folder: On a local disk or in shared memory.
        limit_bytes: Size the cache is kept below; None has no limit.
    """

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def open_shard(
        self, version: DatasetVersion, shard: Shard, *, next_use: Mapping[str, int] | None = None
    ) -> Mapping[str, np.ndarray]:
        """The columns of a shard (without the subject's hash), mapped read-only from the cache and filled on demand.

        Args:
            version: Where the shard comes from.
            shard: Which.
            next_use: sha256 of shards to how soon they are needed (0 is now), for eviction.

        Raises:
            DatasetError: The shard is missing or its bytes changed.
            EnvironmentFault: The cache folder is full or cannot be written.
        """
        path = cached_file(self._folder, shard)
        for _ in range(3):
            if not path.is_file():
                self._fill(path, version, shard, next_use=next_use or {})
            try:
                with pa.memory_map(str(path)) as source:
                    table = pa.ipc.open_file(source).read_all()
                return {name: flatten_column(table.column(name)) for name in table.column_names}
            except FileNotFoundError:
                continue  # another process needed the room in between
        raise EnvironmentFault(
            f"node cache {self._folder} loses shards as fast as they come", hint="raise its limit above a few windows"
        )

    def _fill(self, path: Path, version: DatasetVersion, shard: Shard, *, next_use: Mapping[str, int]) -> None:
        names = [column.name for column in version.schema.columns if "ignored" not in column.roles]
        table = read_shard(version, shard, columns=names).combine_chunks()
        aside = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(prefix=".fill-", dir=path.parent)
            os.close(handle)
            with pa.OSFile(aside, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            self._make_room(Path(aside).stat().st_size, next_use)
            Path(aside).replace(path)
        except OSError as error:
            if aside:
                Path(aside).unlink(missing_ok=True)
            raise EnvironmentFault(
                f"node cache {self._folder} cannot be written: {error}", hint="free disk space or move the cache"
            ) from error

    def _make_room(self, needed_bytes: int, next_use: Mapping[str, int]) -> None:
        if self._limit_bytes is None:
            return
        sizes = {}
        for path in self._folder.glob("??/*.arrow"):
            try:
                sizes[path.stem] = path.stat().st_size
            except FileNotFoundError:
                continue  # another process made room
        for sha256 in choose_evictions(
            sizes, next_use=next_use, needed_bytes=needed_bytes, limit_bytes=self._limit_bytes
        ):
            (self._folder / sha256[:2] / f"{sha256}.arrow").unlink(missing_ok=True)


def choose_evictions(
    sizes: Mapping[str, int], *, next_use: Mapping[str, int], needed_bytes: int, limit_bytes: int
) -> tuple[str, ...]:
    """Which cached shards go, so that `needed_bytes` fit: those never needed again first, then the furthest (Belady).

    Args:
        sizes: Cached shard to bytes.
        next_use: Shard to how soon it is needed; absent means never, as far as this run knows.
        needed_bytes: To be added.
        limit_bytes: Of the whole cache. When even an empty cache would be too small, everything goes.
    """
    excess = sum(sizes.values()) + needed_bytes - limit_bytes
    chosen: list[str] = []
    for name in sorted(sizes, key=lambda name: (-next_use.get(name, math.inf), name)):
        if excess <= 0:
            break
        chosen.append(name)
        excess -= sizes[name]
    return tuple(chosen)


def cached_file(folder: Path, shard: Shard) -> Path:
    """Where a shard's decoded columns lie in a cache folder."""
    return folder / shard.sha256[:2] / f"{shard.sha256}.arrow"


def flatten_column(column: pa.ChunkedArray) -> np.ndarray:
    """A column's values as one flat array, without a copy where it lies in one piece."""
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_fixed_size_list(chunk.type):
        chunk = chunk.flatten()
    return np.asarray(chunk.to_numpy(zero_copy_only=False))
