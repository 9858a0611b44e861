"""Features that give the label away: how well each one alone predicts it, counted while a version is built.

A column whose values (or 256 quantile bins, for numbers) name the label almost perfectly is reported, never dropped:
the people who know the data decide. Leaves to others: showing the report.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlops.datasets.schema import Column, Schema

NEAR_PERFECT = 0.995
BINS = 256


class LeakWatch:
    """Counts of feature value by label.

    Args:
        schema: Names the features and the label.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._labels = len(schema.label.categories or ())
        self._edges: dict[str, npt.NDArray[np.float32]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, rows: pa.Table) -> None:
        """Count some rows; the first ones set the bins of numbers."""
        labels = rows.column(self._schema.label.name).to_numpy()
        for column in self._schema.features:
            if column.kind == "tensor" or not len(labels):
                continue
            codes, size = self._bin(column, rows.column(column.name).to_numpy())
            flat = np.bincount(codes * self._labels + labels, minlength=size * self._labels)
            counts = flat.reshape(size, self._labels)
            self._counts[column.name] = self._counts.get(column.name, 0) + counts

    def finish(self) -> tuple[str, ...]:
        """One line for each feature that alone predicts the label nearly perfectly."""
        lines = []
        for name, counts in self._counts.items():
            total = counts.sum()
            right = counts.max(axis=1).sum() / total
            most_common = counts.sum(axis=0).max() / total
            # Where nearly all rows have one label, guessing it is no leak: the column must do clearly better.
            if right >= NEAR_PERFECT and (1 - right) < (1 - most_common) / 10:
                lines.append(f"{name} alone gives the label of {100 * right:.2f} % of rows; does it leak the answer?")
        return tuple(lines)

    def _bin(self, column: Column, values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], int]:
        if column.kind == "category":
            return values.astype(np.int64), len(column.categories or ())
        if column.name not in self._edges:
            self._edges[column.name] = np.unique(np.quantile(values, np.linspace(0, 1, BINS)[1:]).astype(np.float32))
        edges = self._edges[column.name]
        return np.searchsorted(edges, values).astype(np.int64), len(edges) + 1
