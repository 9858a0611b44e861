"""The node cache: decoded shards as memory-mapped Arrow files, named by the shard's sha256, shared by all processes.

A content-addressed name never goes stale, so there is no invalidation: a file is there whole (rename) or not at all.
Leaves to others: which shard is read when (plan.py) and where its object lies (version.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlops.datasets.manifest import Shard
from mlops.datasets.schema import SUBJECT_COLUMN
from mlops.datasets.version import DatasetVersion, read_shard
from mlops.errors import EnvironmentFault


class NodeCache:
    """Decoded shards of one node.

    Args:
        folder: On a local disk or in shared memory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_shard(self, version: DatasetVersion, shard: Shard) -> Mapping[str, np.ndarray]:
        """The columns of a shard (without the subject's hash), mapped read-only from the cache and filled on demand.

        Raises:
            DatasetError: The shard is missing or its bytes changed.
            EnvironmentFault: The cache folder is full or cannot be written.
        """
        path = cached_file(self._folder, shard)
        if not path.is_file():
            self._fill(path, version, shard)
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        return {name: flatten_column(table.column(name)) for name in table.column_names}

    def _fill(self, path: Path, version: DatasetVersion, shard: Shard) -> None:
        names = [column.name for column in version.schema.columns if "ignored" not in column.roles]
        table = read_shard(version, shard, columns=[name for name in names if name != SUBJECT_COLUMN]).combine_chunks()
        aside = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(prefix=".fill-", dir=path.parent)
            os.close(handle)
            with pa.OSFile(aside, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            Path(aside).replace(path)
        except OSError as error:
            Path(aside).unlink(missing_ok=True) if aside else None
            raise EnvironmentFault(
                f"node cache {self._folder} cannot be written: {error}", hint="free disk space or move the cache"
            ) from error


def cached_file(folder: Path, shard: Shard) -> Path:
    """Where a shard's decoded columns lie in a cache folder."""
    return folder / shard.sha256[:2] / f"{shard.sha256}.arrow"


def flatten_column(column: pa.ChunkedArray) -> np.ndarray:
    """A column's values as one flat array, without a copy where it lies in one piece."""
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if pa.types.is_fixed_size_list(chunk.type):
        chunk = chunk.flatten()
    return np.asarray(chunk.to_numpy(zero_copy_only=False))
