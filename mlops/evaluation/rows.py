"""Rows to judge on, as arrays in an order of their own content, so that no verdict depends on the order of a file.

Leaves to others: reading shards (mlops/datasets) and the model's answers (judged.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.verdicts import NotEvaluableError
from mlops.provenance.digest import digest_bytes

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops.datasets.schema import Schema

Array = NDArray[Any]
MISSING = "(missing)"
SUBJECT = "subject"


@dataclass(frozen=True)
class Rows:
    """N rows."""

    features: Mapping[str, Array]
    """Input name to float32 `[N]`, int64 codes `[N]` or float32 `[N, *shape]`."""
    labels: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.str_]]
    """Category columns (sensitive or feature) to names of their values, for slices."""
    subjects: Array | None = None
    """Keyed hash of each row's person, if the rows have it."""

    def __len__(self) -> int:
        return int(self.labels.size)

    def group_by(self, columns: tuple[str, ...]) -> NDArray[np.str_]:
        """Group name of each row: values joined by ` & `; `all` for no columns.

        Raises:
            NotEvaluableError: A column is not there.
        """
        if not columns:
            return np.full(len(self), "all")
        absent = [column for column in columns if column not in self.groups]
        if absent:
            raise NotEvaluableError(
                "attribute-missing", f"the rows have no category column {', '.join(absent)}: groups cannot be compared"
            )
        joined = self.groups[columns[0]].astype(object)
        for column in columns[1:]:
            joined = joined + " & " + self.groups[column].astype(object)
        return joined.astype(str)

    def take(self, positions: NDArray[Any]) -> Rows:
        """The rows at these positions (or of this mask)."""
        return Rows(
            features={name: values[positions] for name, values in self.features.items()},
            labels=self.labels[positions],
            groups={name: values[positions] for name, values in self.groups.items()},
            subjects=None if self.subjects is None else self.subjects[positions],
        )

    def sample(self, size: int, *, seed: int) -> Rows:
        """At most `size` rows, drawn by seed from the content order."""
        if size >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:size])
        return self.take(chosen)

    def content_keys(self) -> list[bytes]:
        """Features and label of each row as bytes: equal rows have equal keys."""
        return [row.tobytes() for row in _feature_bytes(self)]

    @property
    def digest(self) -> str:
        """`sha256:…` of labels, features and groups in content order."""
        return digest_bytes(_row_bytes(self).tobytes())


def rows_of_table(table: pa.Table, *, schema: Schema) -> Rows:
    """Rows of a split; a missing sensitive value becomes a group of its own.

    Raises:
        NotEvaluableError: No rows, a column is missing, or a feature or label is null or not finite.
    """
    if table.num_rows == 0:
        raise NotEvaluableError("no-rows", "there are no rows to judge on")
    features = {column.name: _values(table, column.name, shape=column.shape) for column in schema.features}
    for name, values in features.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NotEvaluableError("rows-not-finite", f"feature {name} holds NaN or infinity")
    labels = _values(table, schema.label.name).astype(np.int64)
    grouped = {
        column.name: _names(table, column.name, categories=column.categories)
        for column in schema.columns
        if column.categories and column.name in table.column_names and "label" not in column.roles
    }
    subjects = None
    if SUBJECT in table.column_names:
        subjects = np.array([bytes(value) for value in table.column(SUBJECT).to_pylist()], dtype=object)
    rows = Rows(features=features, labels=labels, groups=grouped, subjects=subjects)
    return in_content_order(rows)


def _values(table: pa.Table, name: str, *, shape: tuple[int, ...] = ()) -> Array:
    if name not in table.column_names:
        raise NotEvaluableError("column-missing", f"the rows have no column {name}")
    column = table.column(name).combine_chunks()
    if column.null_count:
        raise NotEvaluableError("rows-null", f"column {name} holds {column.null_count} empty values")
    if shape:
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(table.num_rows, *shape)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _names(table: pa.Table, name: str, *, categories: tuple[str, ...]) -> NDArray[np.str_]:
    codes = np.asarray(table.column(name).combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False))
    is_known = (codes >= 0) & (codes < len(categories))
    return np.where(is_known, np.array(categories)[np.where(is_known, codes, 0)], MISSING).astype(str)


def _row_bytes(rows: Rows) -> NDArray[np.uint8]:
    names = [_as_bytes(np.char.encode(rows.groups[name], "utf-8"), len(rows)) for name in sorted(rows.groups)]
    return np.concatenate([_feature_bytes(rows), *names], axis=1)


def _feature_bytes(rows: Rows) -> NDArray[np.uint8]:
    parts = [rows.labels, *(rows.features[name] for name in sorted(rows.features))]
    return np.concatenate([_as_bytes(part, len(rows)) for part in parts], axis=1)


def _as_bytes(values: Array, count: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8).reshape(count, -1)


def in_content_order(rows: Rows) -> Rows:
    """The same rows in an order of their own content, whatever order they came in."""
    matrix = np.ascontiguousarray(_row_bytes(rows))
    return rows.take(np.argsort(matrix.view(f"V{matrix.shape[1]}").ravel(), kind="stable"))
