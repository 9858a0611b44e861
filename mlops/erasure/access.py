"""What the machine holds of one person: shards of every version, models, environments, and the rows themselves.

Leaves to others: finding what is affected (affected.py), sealing the rows (mlops/provenance/sealing.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from mlops.datasets.forgetting import find_holdings
from mlops.datasets.schema import SUBJECT_COLUMN, Column
from mlops.datasets.version import load_dataset_version, read_shard
from mlops.erasure import sql_erasure
from mlops.erasure.affected import find_affected
from mlops.project.opening import Project


@dataclass(frozen=True)
class Access:
    """The answer to *what do you have of me*."""

    dataset: str
    shards: tuple[dict[str, Any], ...]
    """Version, path, rows of the person, whether the version is pinned."""
    models: tuple[str, ...]
    """`product@number` of everything that was trained on the person."""
    environments: tuple[str, ...]
    requests: tuple[dict[str, Any], ...]
    """Open and answered requests of the person."""
    rows: tuple[dict[str, Any], ...] = field(repr=False)
    """Each distinct row once, values as people read them; without the keyed hash."""

    def to_json(self) -> dict[str, Any]:
        """Where the person is; not the rows."""
        return {
            "dataset": self.dataset,
            "shards": list(self.shards),
            "models": list(self.models),
            "environments": list(self.environments),
            "requests": list(self.requests),
            "rows": len(self.rows),
        }

    def render_rows(self) -> bytes:
        """The rows as JSON, one a line."""
        return "".join(f"{json.dumps(row, ensure_ascii=False, sort_keys=True)}\n" for row in self.rows).encode()


def find_person(project: Project, dataset: str, subject: bytes) -> Access:
    """Everything of one person; the same shape when there is nothing.

    Raises:
        DatasetError: Unknown dataset, or a shard is missing or changed.
    """
    pinned = load_dataset_version(project.places, dataset)
    shards: list[dict[str, Any]] = []
    rows: dict[str, dict[str, Any]] = {}
    for holding in find_holdings(project.places, dataset, subject):
        version = (
            pinned
            if holding.dvc_digest == pinned.dvc_digest
            else load_dataset_version(project.places, dataset, revision=holding.dvc_digest)
        )
        shards.append(
            {
                "version": holding.digest,
                "path": holding.shard.relpath,
                "rows": holding.rows,
                "is_pinned": version is pinned,
            }
        )
        table = read_shard(version, holding.shard)
        for row in table.filter(pc.equal(table.column(SUBJECT_COLUMN), subject)).to_pylist():
            shown = {column.name: _show(column, row[column.name]) for column in version.schema.columns}
            rows.setdefault(json.dumps(shown, sort_keys=True), shown)
    affected = find_affected(project, dataset, frozenset({subject}))
    with project.ledger.read() as connection:
        known = [it for it in sql_erasure.list_requests(connection, dataset=dataset) if it.subject == subject.hex()]
    return Access(
        dataset=dataset,
        shards=tuple(shards),
        models=tuple(f"{model.product}@{model.number}" for model in affected.models),
        environments=tuple(sorted({place.environment for place in affected.environments})),
        requests=tuple({"request": it.request_id, "state": it.state, "deadline_us": it.deadline_us} for it in known),
        rows=tuple(rows.values()),
    )


def _show(column: Column, value: Any) -> Any:
    if column.categories and isinstance(value, int):
        return column.categories[value]
    return value
