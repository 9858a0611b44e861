"""MLflow's store in a backup: a consistent copy of its database, and artefacts that are found again in another folder.

Leaves to others: the archive (mlops/overview). A tracking server is backed up by whoever runs it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mlops.errors import ProvenanceError
from mlops.ledger.copying import snapshot_sqlite
from mlops.places import Places
from mlops.registry.mlflow_door import tracking_uri

_LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Columns with absolute addresses of artefacts, by table."""


def is_in_backup(places: Places) -> bool:
    """Whether MLflow's store is the project's own SQLite file."""
    return tracking_uri(places) == f"sqlite:///{_database(places)}"


def snapshot_mlflow(places: Places, target: Path) -> bool:
    """Copy the database as it is at one moment; False when there is none yet.

    Raises:
        LedgerError: It cannot be read.
    """
    source = _database(places)
    if not source.is_file():
        return False
    snapshot_sqlite(source, target)
    return True


def relocate_mlflow(database: Path, *, old: Path, new: Path) -> int:
    """Let the artefacts of a database that lay below `old` be looked for below `new`; returns how many rows changed.

    Raises:
        ProvenanceError: Not a database of MLflow.
    """
    prefix, changed = f"{old.as_uri()}/", 0
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, columns in _LOCATIONS.items():
                known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for column in known.intersection(columns):
                    found = connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                        (f"{new.as_uri()}/", len(prefix) + 1, len(prefix), prefix),
                    )
                    changed += found.rowcount
    except sqlite3.Error as error:
        raise ProvenanceError(f"MLflow's store in the backup cannot be read: {error}") from error
    return changed


def _database(places: Places) -> Path:
    return places.mlflow_folder.resolve() / "mlflow.sqlite"
