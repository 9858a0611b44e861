"""Forward migrations: `m0001_*.py`, `m0002_*.py`, … each with `upgrade(connection)` and frozen DDL of its own.

A migration never imports a room's tables: those move on, history does not. A test compares the result with the tables
that the rooms declare.
"""

from __future__ import annotations

import importlib
import pkgutil

import sqlalchemy as sa

from mlops.errors import LedgerError

schema_version = sa.Table(
    "schema_version", sa.MetaData(), sa.Column("version", sa.Integer, primary_key=True, autoincrement=False)
)


def known_versions() -> list[tuple[int, str]]:
    """`(number, module)` of every migration, in order."""
    names = sorted(name for _, name, _ in pkgutil.iter_modules(__path__) if name.startswith("m"))
    return [(int(name[1:5]), f"{__name__}.{name}") for name in names]


def find_missing(connection: sa.Connection) -> tuple[int, ...]:
    """Numbers of the migrations that were not applied yet.

    Raises:
        LedgerError: The ledger was written by a newer mlops.
    """
    known = known_versions()
    exists = sa.inspect(connection).has_table(schema_version.name)
    applied = set(connection.scalars(sa.select(schema_version.c.version))) if exists else set()
    unknown = applied - {number for number, _ in known}
    if unknown:
        raise LedgerError(
            f"the ledger has schema version {max(unknown)}, this mlops knows up to {known[-1][0]}",
            hint="use the newer mlops that wrote it",
        )
    return tuple(number for number, _ in known if number not in applied)


def migrate(connection: sa.Connection, *, up_to: int | None = None) -> int:
    """Apply what is missing; returns the version reached.

    Raises:
        LedgerError: The ledger was written by a newer mlops.
    """
    missing = find_missing(connection)
    schema_version.create(connection, checkfirst=True)
    for number, module in known_versions():
        if number not in missing or (up_to is not None and number > up_to):
            continue
        importlib.import_module(module).upgrade(connection)
        connection.execute(schema_version.insert().values(version=number))
    return max([number for number, _ in known_versions() if up_to is None or number <= up_to], default=0)
