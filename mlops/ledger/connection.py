"""Opening the ledger and writing to it: one database, one engine, one write lock.

SQLite in WAL mode by default, PostgreSQL by URL. `Ledger.write()` takes the write lock (BEGIN IMMEDIATE, or an advisory
lock on PostgreSQL), so code inside sees the last state and no other writer comes between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlops.clock import Clock
from mlops.errors import LedgerError
from mlops.ledger import sql_events
from mlops.ledger.migrations import migrate

BUSY_TIMEOUT_MS = 30_000
_ADVISORY_LOCK = 0x6D6C6F7073  # "mlops"


@dataclass(frozen=True)
class Transaction:
    """An open write transaction; committed when the `Ledger.write()` block ends well."""

    connection: sa.Connection
    now_us: int

    def append(self, kind: str, subject: str, body: dict[str, Any]) -> int:
        """Append an event to the chain, in this transaction.

        Args:
            kind: `<noun>.<past participle>`, e.g. `lease.reserved`.
            subject: Identifier of what changed.
            body: JSON values only (no floats for money).

        Returns:
            The event's number, counting from 1 without gaps.
        """
        return sql_events.append(self.connection, at_us=self.now_us, kind=kind, subject=subject, body=body)


class Ledger:
    """One ledger; safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """All or nothing, alone.

        Raises:
            LedgerError: The database is locked for too long, full or damaged.
        """
        try:
            with self.engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                yield Transaction(connection=connection, now_us=self._clock.now_us())
        except sa.exc.OperationalError as error:
            raise translate_error(error, self.engine) from error
        except sa.exc.DatabaseError as error:
            if isinstance(error, sa.exc.IntegrityError):
                raise
            raise translate_error(error, self.engine) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent snapshot.

        Raises:
            LedgerError: as `write`.
        """
        try:
            with self.engine.connect().execution_options(mlops_read_only=True) as connection:
                yield connection
        except sa.exc.OperationalError as error:
            raise translate_error(error, self.engine) from error

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()


def open_ledger(url: str, clock: Clock) -> Ledger:
    """Open, and bring the schema to the current version.

    Args:
        url: SQLAlchemy URL, `sqlite:////path` or `postgresql+psycopg://…`.
        clock: Gives the times of events.

    Raises:
        LedgerError: It cannot be opened, or was written by a newer version of mlops.
    """
    parsed = sa.engine.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    ledger = Ledger(engine, clock)
    with ledger.write() as transaction:
        migrate(transaction.connection)
    return ledger


def sqlite_url(path: Path) -> str:
    """URL of an SQLite file."""
    return f"sqlite:///{path.resolve()}"


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; `_begin_sqlite` says it
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("mlops_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def translate_error(error: sa.exc.DBAPIError, engine: sa.Engine) -> LedgerError:
    """A driver's words to a sentence with what to do."""
    where = engine.url.render_as_string(hide_password=True)
    text = str(error.orig)
    hints = {
        "locked": "another mlops command holds it; wait for it or find it with `mlops doctor --processes`",
        "full": "free disk space and run the command again: nothing was half-written",
        "malformed": "restore it with `mlops restore`, or move it away to start an empty one",
        "not a database": "restore it with `mlops restore`, or move it away to start an empty one",
    }
    hint = next((hint for word, hint in hints.items() if word in text), "")
    return LedgerError(f"ledger {where}: {text.strip()}", hint=hint)
