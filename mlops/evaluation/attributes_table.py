"""Sensitive attributes that live in a table of their own and are joined to the rows only here, in the gate.

The table has a column `subject` (hex of the keyed hash, as shards hold it) and one text column per attribute. Neither
training nor serving reads it. A person it does not know gets a group of their own. Leaves to others: keyed hashes
(mlops/datasets), what is compared (checks/).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlops.errors import ProjectError
from mlops.evaluation.rows import MISSING, Rows

if TYPE_CHECKING:
    import pyarrow as pa

KEY = "subject"


def load_attributes(path: Path) -> pa.Table | None:
    """The table, from Parquet or CSV; None when there is no such file, which leaves checks without their attribute.

    Raises:
        ProjectError: It cannot be read, has no `subject` column or names a person twice.
    """
    import pyarrow.csv as pc  # loads a large library
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pc.read_csv(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise ProjectError(f"{path} cannot be read: {error}", hint="a Parquet or CSV file is expected") from error
    if KEY not in table.column_names:
        raise ProjectError(f"{path} has no column {KEY!r}", hint="it holds the keyed hash of a person in hex")
    keys = table.column(KEY).to_pylist()
    if len(set(keys)) != len(keys):
        raise ProjectError(f"{path} names {len(keys) - len(set(keys))} people twice", hint="one row per person")
    return table


def join_attributes(rows: Rows, table: pa.Table | None) -> Rows:
    """Rows with the table's columns as further groups; without subjects or table, the rows as they are."""
    if table is None or rows.subjects is None:
        return rows
    at = {str(key).lower(): index for index, key in enumerate(table.column(KEY).to_pylist())}
    found = np.array([at.get(bytes(subject).hex(), -1) for subject in rows.subjects])
    groups = dict(rows.groups)
    for name in table.column_names:
        if name != KEY:
            values = [MISSING if value is None else str(value) for value in table.column(name).to_pylist()]
            groups[name] = np.array([*values, MISSING])[found]
    return replace(rows, groups=groups)
