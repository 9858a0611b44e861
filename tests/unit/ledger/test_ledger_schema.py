"""The migrated schema is what the rooms declare; faults of the database are sentences."""

import importlib
import pkgutil
from pathlib import Path

import pytest
import sqlalchemy as sa

import mlops
from mlops.clock import FakeClock
from mlops.errors import LedgerError
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.ledger.migrations import find_missing, known_versions, migrate, schema_version
from mlops.ledger.sql_events import find_broken_event, load_events


def declared_tables() -> dict[str, sa.Table]:
    found = {schema_version.name: schema_version}
    for module in pkgutil.walk_packages(mlops.__path__, "mlops."):
        if module.name.rpartition(".")[2].startswith("sql_"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, sa.Table):
                    found[value.name] = value
    return found


@pytest.fixture
def ledger(tmp_path: Path):
    opened = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), FakeClock())
    yield opened
    opened.close()


def test_every_declared_table_is_migrated_column_by_column(ledger):
    inspector = sa.inspect(ledger.engine)
    for name, table in declared_tables().items():
        assert inspector.has_table(name), f"no migration makes {name}"
        real = {column["name"]: column for column in inspector.get_columns(name)}
        assert set(real) == {column.name for column in table.columns}, name
        for column in table.columns:
            declared = column.type.compile(ledger.engine.dialect)
            assert str(real[column.name]["type"].compile(ledger.engine.dialect)) == declared, f"{name}.{column.name}"
            assert real[column.name]["nullable"] == column.nullable or column.primary_key, f"{name}.{column.name}"
        keys = inspector.get_pk_constraint(name)["constrained_columns"]
        assert keys == [column.name for column in table.primary_key.columns], name


def test_no_table_is_migrated_that_nobody_declares(ledger):
    assert set(sa.inspect(ledger.engine).get_table_names()) == set(declared_tables())


@pytest.mark.parametrize("earlier", [number for number, _ in known_versions()])
def test_a_ledger_of_each_earlier_version_is_brought_forward(tmp_path, earlier):
    url = sqlite_url(tmp_path / "old.sqlite")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        migrate(connection, up_to=earlier)
    engine.dispose()
    opened = open_ledger(url, FakeClock())
    with opened.read() as connection:
        assert find_missing(connection) == ()
    opened.close()


def test_a_ledger_of_a_newer_mlops_is_refused(tmp_path, ledger):
    with ledger.write() as transaction:
        transaction.connection.execute(schema_version.insert().values(version=9999))
    with pytest.raises(LedgerError, match="schema version 9999"):
        open_ledger(str(ledger.engine.url), FakeClock())


def test_a_file_that_is_not_a_database_is_said_so(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"these are not the bytes of a database" * 100)
    with pytest.raises(LedgerError, match="not a database") as caught:
        open_ledger(sqlite_url(path), FakeClock())
    assert "restore" in caught.value.hint


def test_a_damaged_file_is_said_so(tmp_path):
    path = tmp_path / "ledger.sqlite"
    opened = open_ledger(sqlite_url(path), FakeClock())
    with opened.write() as transaction:
        for number in range(200):
            transaction.append("test.made", f"s{number}", {"text": "x" * 200})
    opened.close()
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        again = open_ledger(sqlite_url(path), FakeClock())
        with again.read() as connection:
            list(load_events(connection))


def test_a_full_disk_changes_nothing(ledger):
    with ledger.write() as transaction:
        transaction.append("test.made", "before", {})
        pages = transaction.connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    def fill():
        with ledger.write() as transaction:
            transaction.connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
            for number in range(500):
                transaction.append("test.made", f"s{number}", {"text": "x" * 500})

    with pytest.raises(LedgerError, match="full") as caught:
        fill()
    assert "nothing was half-written" in caught.value.hint
    with ledger.read() as connection:
        assert [event.subject for event in load_events(connection)] == ["before"]
        assert find_broken_event(connection) is None


def test_reading_cannot_write(ledger):
    with pytest.raises(LedgerError, match="readonly"), ledger.read() as connection:
        connection.execute(schema_version.insert().values(version=5000))


def test_a_block_that_fails_leaves_no_trace(ledger):
    def fail():
        with ledger.write() as transaction:
            transaction.append("test.made", "a", {})
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    with ledger.read() as connection:
        assert list(load_events(connection)) == []


def test_times_never_go_back(tmp_path):
    clock = FakeClock()
    opened = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), clock)
    for _ in range(3):
        with opened.write() as transaction:
            transaction.append("test.made", "a", {})
        clock.jump(-500)
    with opened.read() as connection:
        times = [event.at_us for event in load_events(connection)]
    opened.close()
    assert times == sorted(times)


@pytest.mark.parametrize("column", ["at_us", "kind", "subject", "body"])
def test_a_changed_event_is_found(ledger, column):
    for number in range(5):
        with ledger.write() as transaction:
            transaction.append("test.made", f"s{number}", {"number": number})
    with ledger.write() as transaction:
        value = 7 if column == "at_us" else "{}"
        transaction.connection.exec_driver_sql(f"UPDATE events SET {column} = ? WHERE number = 3", (value,))
    with ledger.read() as connection:
        assert find_broken_event(connection) == 3


def test_a_dropped_event_is_found(ledger):
    for number in range(5):
        with ledger.write() as transaction:
            transaction.append("test.made", f"s{number}", {})
    with ledger.write() as transaction:
        transaction.connection.exec_driver_sql("DELETE FROM events WHERE number = 2")
    with ledger.read() as connection:
        assert find_broken_event(connection) == 2
