"""Whole ledgers: a consistent snapshot as an SQLite file, and putting one back, into PostgreSQL too.

Leaves to others: what is done with the file (mlops/overview).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from mlops.clock import Clock
from mlops.errors import LedgerError
from mlops.ledger.connection import Ledger, open_ledger, sqlite_url, translate_error
from mlops.ledger.sql_events import find_broken_event

_ROWS = 1_000


def snapshot_ledger(ledger: Ledger, target: Path, *, clock: Clock) -> None:
    """Write all of a ledger, as it is at one moment, into a new SQLite file.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    target.unlink(missing_ok=True)
    database = ledger.engine.url.database
    if ledger.engine.dialect.name == "sqlite" and database and database != ":memory:":
        snapshot_sqlite(Path(database), target)
        return
    copy = open_ledger(sqlite_url(target), clock)
    try:
        with ledger.read() as source, copy.engine.begin() as sink:
            _copy_tables(source, sink)
    finally:
        copy.close()
    _settle(target)


def snapshot_sqlite(source: Path, target: Path) -> None:
    """A consistent copy of an SQLite file by its backup API, in one file without a write-ahead log.

    Raises:
        LedgerError: It cannot be read.
    """
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise LedgerError(f"{source} cannot be copied: {error}") from error
    _settle(target)


def verify_snapshot(snapshot: Path, *, clock: Clock) -> None:
    """Refuse a file that is no whole ledger of this or an earlier mlops; brings its schema up to date.

    Raises:
        LedgerError: Damaged, written by a newer mlops, or its event chain does not hold.
    """
    ledger = open_ledger(sqlite_url(snapshot), clock)
    try:
        with ledger.read() as connection:
            if connection.exec_driver_sql("PRAGMA quick_check").scalar() != "ok":
                raise LedgerError(f"the ledger in {snapshot.name} is damaged")
            number = find_broken_event(connection)
        if number is not None:
            raise LedgerError(f"event {number} of the ledger in {snapshot.name} does not follow from those before")
    finally:
        ledger.close()
    _settle(snapshot)


def carry_over(source: Ledger, snapshot: Path, *, prefix: str, clock: Clock) -> int:
    """Let what `source` knows in its tables of that prefix stand in a snapshot too; its rows win.

    Returns:
        How many rows were added or changed.
    """
    target = open_ledger(sqlite_url(snapshot), clock)
    changed = 0
    try:
        with source.read() as old, target.engine.begin() as new:
            for table in _list_tables(old):
                if not table.name.startswith(prefix):
                    continue
                keys = [column.name for column in table.primary_key]
                known = {tuple(row): row for row in new.execute(sa.select(table))}
                for row in old.execute(sa.select(table)):
                    if tuple(row) in known:
                        continue
                    match = sa.and_(*(table.c[key] == row._mapping[key] for key in keys))
                    new.execute(table.delete().where(match))
                    new.execute(table.insert().values(**row._mapping))
                    changed += 1
    finally:
        target.close()
    _settle(snapshot)
    return changed


def replace_ledger(url: str, snapshot: Path, *, clock: Clock) -> None:
    """Make a ledger what a snapshot says; a file is renamed into place, a database is emptied and filled at once.

    Raises:
        LedgerError: The database cannot be written.
    """
    parsed = sa.engine.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        target = Path(parsed.database)
        target.parent.mkdir(parents=True, exist_ok=True)
        snapshot.replace(target)
        for suffix in ("-wal", "-shm", "-journal"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        return
    ledger, source = open_ledger(url, clock), open_ledger(sqlite_url(snapshot), clock)
    try:
        with source.read() as old, ledger.engine.begin() as new:
            for table in reversed(list(_list_tables(new))):
                new.execute(table.delete())
            _copy_tables(old, new)
    except sa.exc.DatabaseError as error:
        raise translate_error(error, ledger.engine) from error
    finally:
        ledger.close()
        source.close()


def _copy_tables(source: sa.Connection, target: sa.Connection) -> None:
    for table in _list_tables(target):
        target.execute(table.delete())  # what migrations put there
        rows = source.execution_options(yield_per=_ROWS).execute(sa.select(table))
        for some in rows.mappings().partitions(_ROWS):
            target.execute(table.insert(), [dict(row) for row in some])


def _list_tables(connection: sa.Connection) -> Iterator[sa.Table]:
    """Tables as they are in the database, those that others refer to first."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    yield from metadata.sorted_tables


def _settle(path: Path) -> None:
    """One file: the write-ahead log goes into it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    for suffix in ("-wal", "-shm", "-queue"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
