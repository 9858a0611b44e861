"""Opening the ledger and writing to it: one database, one engine, one write lock.

SQLite in WAL mode by default, PostgreSQL by URL. `Ledger.write()` takes the write lock (BEGIN IMMEDIATE, or an
advisory lock on PostgreSQL, both first come, first served), so code inside sees the last state and no other writer
comes between.
Times in the ledger never go back: a transaction's time is at least that of the last event.

SQLite's WAL is forced to the disk after the lock is given back and before the caller goes on (`_force_log`), so that
writers who wait for the disk do not make the next one wait as well. Nothing is lost by it: the log is kept in order, so
what any later commit forced includes this one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlops.clock import Clock
from mlops.errors import LedgerError, LedgerUnreachable
from mlops.ledger import sql_events
from mlops.ledger.fair_queue import wait_turn
from mlops.ledger.migrations import find_missing, migrate

BUSY_TIMEOUT_MS = 30_000
CHECKPOINT_PAGES = 4_000  # 16 MB: each checkpoint waits for the disk, and durability does not depend on it
_ADVISORY_LOCK = 0x6D6C6F7073  # "mlops"
_SELECT_LOCK = sa.text("SELECT pg_advisory_xact_lock(:key)")


@dataclass(frozen=True)
class Transaction:
    """An open write transaction; committed when the `Ledger.write()` block ends well."""

    connection: sa.Connection
    now_us: int
    """Never before the last event, even when the machine's clock went back."""
    _heads: list[sql_events.Head] = field(default_factory=list, repr=False, compare=False)

    @property
    def next_number(self) -> int:
        """The number that the next event will get."""
        return self._find_head().number + 1

    def _find_head(self) -> sql_events.Head:
        if not self._heads:
            self._heads.append(sql_events.find_head(self.connection))
        return self._heads[-1]

    def append(self, kind: str, subject: str, body: dict[str, Any]) -> int:
        """Append an event to the chain, in this transaction.

        Args:
            kind: `<noun>.<past participle>`, e.g. `lease.reserved`.
            subject: Identifier of what changed.
            body: JSON values only (no floats for money).

        Returns:
            The event's number, counting from 1 without gaps.
        """
        head = sql_events.append(
            self.connection, self._find_head(), at_us=self.now_us, kind=kind, subject=subject, body=body
        )
        self._heads[:] = [head]
        return head.number

    def append_many(self, entries: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Append several events (kind, subject, body) at once, in order."""
        head = sql_events.append_many(self.connection, self._find_head(), at_us=self.now_us, entries=entries)
        self._heads[:] = [head]


class Ledger:
    """One ledger; safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock
        database = engine.url.database if engine.dialect.name == "sqlite" else None
        self._read_options: dict[str, Any] = {"mlops_read_only": True}
        if engine.dialect.name == "postgresql":
            self._read_options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        is_file = bool(database) and database != ":memory:"
        self._queue_path = Path(f"{database}-queue") if is_file else None
        self._log_path = Path(f"{database}-wal") if is_file else None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """All or nothing, alone, in the order of asking.

        Raises:
            LedgerError: The database is locked for too long, full or damaged.
        """
        with self._lock() as connection:
            head = sql_events.find_head(connection)
            yield Transaction(connection=connection, now_us=max(self._clock.now_us(), head.at_us), _heads=[head])

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent snapshot; writing in it is an error.

        Raises:
            LedgerError: as `write`.
        """
        try:
            with self.engine.connect().execution_options(**self._read_options) as connection:
                yield connection
        except sa.exc.DatabaseError as error:
            raise translate_error(error, self.engine) from error

    def upgrade(self) -> None:
        """Bring the schema to the current version.

        Raises:
            LedgerError: It was written by a newer version of mlops.
        """
        with self.read() as connection:
            missing = find_missing(connection)
        if missing:
            with self._lock() as connection:
                migrate(connection)

    @contextmanager
    def _lock(self) -> Iterator[sa.Connection]:
        try:
            with self._wait_turn(), self.engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(_SELECT_LOCK, {"key": _ADVISORY_LOCK})
                yield connection
            self._force_log()
        except sa.exc.DatabaseError as error:
            if isinstance(error, sa.exc.IntegrityError):
                raise
            raise translate_error(error, self.engine) from error

    def _force_log(self) -> None:
        """What was committed survives a loss of power from here on.

        Raises:
            LedgerError: The disk did not take it; whether it is kept is not known.
        """
        if self._log_path is None:
            return
        try:
            descriptor = os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # moved into the database, and forced there, by the last connection that closed
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            raise LedgerUnreachable(
                f"ledger {self.engine.url.database}: the disk did not confirm the last change: {error}",
                hint="look at the disk, then run the command again: a change that is there is not made twice",
            ) from error
        finally:
            os.close(descriptor)

    def _wait_turn(self) -> AbstractContextManager[object]:
        if self._queue_path is None:
            return nullcontext()
        return wait_turn(self._queue_path, timeout_seconds=BUSY_TIMEOUT_MS / 1000)

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
    try:
        engine = _make_engine(sa.engine.make_url(url))
    except (sa.exc.ArgumentError, ImportError, OSError) as error:
        raise LedgerError(
            f"the ledger {_hide_login(url)!r} cannot be opened: {_hide_login(str(error))}",
            hint="MLOPS_LEDGER takes a database URL such as sqlite:////srv/mlops/ledger.sqlite or postgresql+psycopg://…",
        ) from error
    ledger = Ledger(engine, clock)
    ledger.upgrade()
    return ledger


def _hide_login(text: str) -> str:
    """Without what stands between `//` and `@`: it may be a URL that no parser understood."""
    return re.sub(r"//[^/\s]*@", "//…@", text)


def _make_engine(parsed: sa.URL) -> sa.Engine:
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False})
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    return sa.create_engine(parsed, pool_pre_ping=True)


def sqlite_url(path: Path) -> str:
    """URL of an SQLite file."""
    return f"sqlite:///{path.resolve()}"


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; `_begin_sqlite` says it
    cursor = connection.cursor()
    pragmas = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}")
    for pragma in (*pragmas, f"wal_autocheckpoint={CHECKPOINT_PAGES}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    is_reader = connection.get_execution_options().get("mlops_read_only", False)
    if connection.info.get("is_reader", False) is not is_reader:
        connection.exec_driver_sql(f"PRAGMA query_only={'ON' if is_reader else 'OFF'}")
        connection.info["is_reader"] = is_reader
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")


def translate_error(error: sa.exc.DBAPIError, engine: sa.Engine) -> LedgerError:
    """A driver's words to a sentence with what to do."""
    where = engine.url.render_as_string(hide_password=True)
    text = str(error.orig)
    hints = {
        "locked": "another mlops command holds it; wait for it or find it with `mlops doctor --processes`",
        "readonly database": "the file or its folder cannot be written by this user, or a read tried to write",
        "unable to open": "check that the folder exists and that this user may write there",
        "full": "free disk space and run the command again: nothing was half-written",
        "malformed": "restore it with `mlops restore`, or move it away to start an empty one",
        "not a database": "restore it with `mlops restore`, or move it away to start an empty one",
    }
    hint = next((hint for word, hint in hints.items() if word in text), "")
    is_passing = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
    return (LedgerUnreachable if is_passing else LedgerError)(f"ledger {where}: {text.strip()}", hint=hint)
