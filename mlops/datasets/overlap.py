"""Rows of test that also stand in train, counted by a hash of their values; the hashes lie on disk, cut by value.

Leaves to others: saying so (importing.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops.datasets.schema import SUBJECT_COLUMN

_CUTS = 64
"""Files of each split; one is held in memory at a time."""
_SPLITS = ("train", "test")
_PRIME = np.uint64(0x9E3779B97F4A7C15)


class OverlapCount:
    """Counts test rows whose values all stand in a train row too.

    Args:
        folder: For 8 bytes a row.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)

    def add(self, rows: pa.Table, *, split: str) -> None:
        """Count some rows of a split."""
        if split not in _SPLITS:
            return
        hashes = np.sort(hash_rows(rows))
        bounds = np.searchsorted(hashes, np.arange(1, _CUTS, dtype=np.uint64) << np.uint64(58))
        for cut, part in enumerate(np.split(hashes, bounds)):
            with self._path(split, cut).open("ab") as stream:
                stream.write(part.data)

    def finish(self) -> int:
        """How many."""
        return sum(int(np.isin(self._load("test", cut), self._load("train", cut)).sum()) for cut in range(_CUTS))

    def _load(self, split: str, cut: int) -> npt.NDArray[np.uint64]:
        path = self._path(split, cut)
        return np.fromfile(path, dtype=np.uint64) if path.is_file() else np.empty(0, np.uint64)

    def _path(self, split: str, cut: int) -> Path:
        return self._folder / f"{split}-{cut}"


def hash_rows(rows: pa.Table) -> npt.NDArray[np.uint64]:
    """64-bit hash of each row's values without the subject; for counting duplicates, not for proof."""
    result = np.zeros(rows.num_rows, dtype=np.uint64)
    for name in rows.column_names:
        if name == SUBJECT_COLUMN:
            continue
        column = rows.column(name).combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values = np.ascontiguousarray(flat.to_numpy(zero_copy_only=False))
        words = values.view(np.uint32 if values.dtype.itemsize == 4 else np.uint64).astype(np.uint64)
        for word in words.reshape(rows.num_rows, -1).T:
            result = (result ^ word) * _PRIME
            result ^= result >> np.uint64(29)
    return result
