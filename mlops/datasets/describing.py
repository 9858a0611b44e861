"""What a dataset version holds, for people: splits, columns with roles, and how many rows each sensitive group has.

Leaves to others: reading rows (version.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlops.clock import render_time
from mlops.datasets.schema import Column
from mlops.datasets.version import DatasetVersion, read_split
from mlops.ledger.connection import Ledger
from mlops.provenance.sql_steps import find_steps_of_digest


@dataclass(frozen=True)
class Description:
    """A version in numbers."""

    version: DatasetVersion
    rows: dict[str, int]
    """Split to rows."""
    groups: dict[str, dict[str, dict[str, int]]]
    """Sensitive column or label to category to split to rows."""

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        schema = self.version.schema
        return {
            "dataset": self.version.name,
            "digest": self.version.digest,
            "dvc_digest": self.version.dvc_digest,
            "title": schema.title,
            "credit": schema.credit,
            "licence": schema.licence,
            "lawful_basis": schema.lawful_basis,
            "purposes": list(schema.purposes),
            "retention_days": schema.retention_days,
            "isolation_groups": schema.groups,
            "shards": len(self.version.manifest.shards),
            "bytes": self.version.manifest.bytes,
            "rows": self.rows,
            "columns": [
                {"name": column.name, "kind": column.kind, "roles": list(column.roles)} for column in schema.columns
            ],
            "groups": self.groups,
        }

    def render_text(self) -> str:
        """A page of plain text."""
        schema, manifest = self.version.schema, self.version.manifest
        splits = list(self.rows)
        lines = [
            f"{schema.title} ({self.version.name})",
            f"  version   {self.version.digest}",
            f"  licence   {schema.licence}: {schema.credit}",
            f"  use       {schema.lawful_basis}; for {', '.join(schema.purposes)}",
            f"  shards    {len(manifest.shards)} of {schema.groups} isolation groups, {manifest.bytes:,} bytes",
            f"  rows      {', '.join(f'{split} {rows:,}' for split, rows in self.rows.items())}",
            "  columns",
        ]
        lines += [f"    {column.name:<20} {_describe(column)}" for column in schema.columns]
        for name, categories in self.groups.items():
            lines.append(f"  rows by {name} ({' / '.join(splits)})")
            for category, counts in categories.items():
                lines.append(f"    {category:<20} {' / '.join(f'{counts[split]:,}' for split in splits)}")
        return "\n".join(lines)


def describe_version(version: DatasetVersion) -> Description:
    """Count rows by split, sensitive group and label.

    Raises:
        DatasetError: Missing or changed shards.
    """
    counted = (*version.schema.sensitive, version.schema.label)
    names = [column.name for column in counted]
    rows: dict[str, int] = {}
    groups: dict[str, dict[str, dict[str, int]]] = {
        column.name: {category: {} for category in column.categories or ()} for column in counted
    }
    for split in sorted(version.manifest.splits, key=lambda name: version.schema.splits[name]):
        table = read_split(version, split, columns=names)
        rows[split] = table.num_rows
        for column in counted:
            categories = column.categories or ()
            counts = np.bincount(table.column(column.name).to_numpy(), minlength=len(categories))
            for category, count in zip(categories, counts, strict=True):
                groups[column.name][category][split] = int(count)
    return Description(version=version, rows=rows, groups=groups)


def find_consumers(ledger: Ledger, version: DatasetVersion) -> list[dict[str, str]]:
    """Steps that used the version, newest first: sweeps, exports, gates."""
    with ledger.read() as connection:
        steps = list(find_steps_of_digest(connection, version.digest, direction="in"))
    return [
        {"step": step.step_id, "kind": step.kind, "product": step.product, "finished": render_time(step.finished_us)}
        for step in steps
    ]


def _describe(column: Column) -> str:
    if column.kind == "category":
        size = f"{len(column.categories or ())} categories"
    elif column.kind == "tensor":
        size = f"shape {list(column.shape)}"
    else:
        low, high = ("…" if bound is None else f"{bound:g}" for bound in (column.minimum, column.maximum))
        size = f"{low} to {high}"
    return f"{column.kind:<9} {size:<16} {', '.join(column.roles)}" + (
        f"  ({column.description})" if column.description else ""
    )
