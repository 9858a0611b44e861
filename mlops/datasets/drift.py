"""How far the values of two versions lie apart, column by column, as numbers and as a picture.

Distances are between 0 (same distribution) and 1: total variation for categories, Kolmogorov–Smirnov for numbers and
for the mean of a tensor's values. Leaves to others: which versions (comparing.py) and whether a drift matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlops.datasets.schema import Column
from mlops.datasets.version import DatasetVersion, read_shard

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ColumnDrift:
    """One column that both versions have."""

    column: str
    distance: float
    """0 to 1."""
    rows_before: int
    rows_after: int


def measure_drift(before: DatasetVersion, after: DatasetVersion) -> tuple[ColumnDrift, ...]:
    """Distance of every column of the same name and kind, the largest first. Shards that both versions share count too.

    Raises:
        DatasetError: A shard is missing or changed.
    """
    kinds = {column.name: column for column in before.schema.columns}
    columns = [
        column for column in after.schema.columns if column.name in kinds and kinds[column.name].kind == column.kind
    ]
    found = []
    for column in columns:
        first, second = _read(before, kinds[column.name]), _read(after, column)
        if column.kind == "category":
            distance = _total_variation(_names(first, kinds[column.name]), _names(second, column))
        else:
            distance = _kolmogorov_smirnov(first, second)
        found.append(ColumnDrift(column.name, distance, len(first), len(second)))
    return tuple(sorted(found, key=lambda drift: (-drift.distance, drift.column)))


def draw_drift(drifts: tuple[ColumnDrift, ...], target: Path, *, title: str) -> None:
    """One bar for each column, as SVG or PNG by the file's ending."""
    from matplotlib.figure import Figure  # 0.5 s, and only a plot needs it

    figure = Figure(figsize=(7, 1 + 0.28 * max(1, len(drifts))), layout="constrained")
    axes = figure.subplots()
    names = [drift.column for drift in reversed(drifts)]
    axes.barh(names, [drift.distance for drift in reversed(drifts)])
    axes.set_xlim(0, max([0.1, *(drift.distance for drift in drifts)]))
    axes.set_xlabel("distance (0 same, 1 disjoint)")
    axes.set_title(title, fontsize="small")
    figure.savefig(target)


def _read(version: DatasetVersion, column: Column) -> Values:
    parts = []
    for shard in version.manifest.shards:
        values = read_shard(version, shard, columns=[column.name]).column(column.name).combine_chunks()
        if column.kind == "tensor":
            flat = values.flatten().to_numpy(zero_copy_only=False)
            parts.append(flat.reshape(shard.rows, -1).mean(axis=1, dtype=np.float64))
        else:
            parts.append(values.to_numpy(zero_copy_only=False).astype(np.float64))
    return np.concatenate(parts)


def _names(codes: Values, column: Column) -> dict[str, float]:
    """Share of each category by name: codes of two versions need not mean the same."""
    categories = column.categories or ()
    counts = np.bincount(codes.astype(np.int64), minlength=len(categories))
    return {name: float(count) / len(codes) for name, count in zip(categories, counts, strict=True)}


def _total_variation(first: dict[str, float], second: dict[str, float]) -> float:
    names = first.keys() | second.keys()
    return sum(abs(first.get(name, 0.0) - second.get(name, 0.0)) for name in sorted(names)) / 2


def _kolmogorov_smirnov(first: Values, second: Values) -> float:
    """Largest gap between the two empirical distribution functions."""
    points = np.union1d(first, second)
    below_first = np.searchsorted(np.sort(first), points, side="right") / len(first)
    below_second = np.searchsorted(np.sort(second), points, side="right") / len(second)
    return float(np.abs(below_first - below_second).max())
