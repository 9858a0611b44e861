"""Snapshots of a ledger that others write to, and what is carried over into one."""

import threading

import pytest
import sqlalchemy as sa

from mlops.clock import FakeClock
from mlops.errors import LedgerError
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.ledger.copying import carry_over, replace_ledger, snapshot_ledger, verify_snapshot
from mlops.ledger.sql_events import find_broken_event, load_events

TABLE = sa.Table(
    "erasure_certificates",
    sa.MetaData(),
    *(sa.Column(name, sa.Text) for name in ("batch_id", "dataset", "digest", "previous", "envelope")),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("at_us", sa.BigInteger),
)


def open_at(path):
    return open_ledger(sqlite_url(path), FakeClock())


def add(ledger, number, dataset="income"):
    row = {"batch_id": f"batch-{number}", "digest": "", "previous": "", "envelope": "{}", "at_us": 1}
    with ledger.write() as transaction:
        transaction.connection.execute(TABLE.insert().values(number=number, dataset=dataset, **row))


def datasets(path):
    ledger = open_at(path)
    with ledger.read() as connection:
        found = dict(connection.execute(sa.select(TABLE.c.number, TABLE.c.dataset)).all())
    ledger.close()
    return found


def test_a_snapshot_taken_while_others_write_holds_whole_transactions_and_a_whole_chain(tmp_path):
    ledger = open_at(tmp_path / "ledger.sqlite")
    is_ended = threading.Event()

    def write():
        number = 0
        while not is_ended.is_set():
            number += 1
            with ledger.write() as transaction:
                transaction.append("pair.began", str(number), {})
                transaction.append("pair.ended", str(number), {})

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(5):
        snapshot_ledger(ledger, tmp_path / f"copy-{number}", clock=FakeClock())
    is_ended.set()
    writer.join()
    ledger.close()
    for number in range(5):
        copy = tmp_path / f"copy-{number}"
        verify_snapshot(copy, clock=FakeClock())
        opened = open_at(copy)
        with opened.read() as connection:
            kinds = [event.kind for event in load_events(connection)]
            assert find_broken_event(connection) is None and len(kinds) % 2 == 0
        opened.close()


def test_what_is_carried_over_wins_and_the_rest_stays(tmp_path):
    old, new = open_at(tmp_path / "old.sqlite"), open_at(tmp_path / "new.sqlite")
    add(old, 1, "as the backup has it")
    add(old, 2, "only in the backup")
    snapshot_ledger(old, tmp_path / "copy", clock=FakeClock())
    add(new, 1, "as the project has it")
    add(new, 3, "only in the project")
    assert carry_over(new, tmp_path / "copy", prefix="erasure_", clock=FakeClock()) == 2
    assert carry_over(new, tmp_path / "copy", prefix="erasure_", clock=FakeClock()) == 0
    assert datasets(tmp_path / "copy") == {
        1: "as the project has it", 2: "only in the backup", 3: "only in the project",
    }  # fmt: skip
    old.close()
    new.close()


def test_a_snapshot_takes_the_place_of_a_ledger_with_its_log(tmp_path):
    ledger = open_at(tmp_path / "ledger.sqlite")
    add(ledger, 1)
    snapshot_ledger(ledger, tmp_path / "copy", clock=FakeClock())
    add(ledger, 2)
    ledger.close()
    (tmp_path / "ledger.sqlite-wal").write_bytes(b"of the former one")
    replace_ledger(sqlite_url(tmp_path / "ledger.sqlite"), tmp_path / "copy", clock=FakeClock())
    assert datasets(tmp_path / "ledger.sqlite") == {1: "income"}


def test_a_snapshot_with_a_changed_event_is_refused(tmp_path):
    ledger = open_at(tmp_path / "ledger.sqlite")
    with ledger.write() as transaction:
        transaction.append("it.happened", "x", {"what": "this"})
    snapshot_ledger(ledger, tmp_path / "copy", clock=FakeClock())
    ledger.close()
    copy = sa.create_engine(sqlite_url(tmp_path / "copy"))
    with copy.begin() as connection:
        connection.exec_driver_sql("UPDATE events SET body = replace(body, 'this', 'that')")
    copy.dispose()
    with pytest.raises(LedgerError, match="event 1"):
        verify_snapshot(tmp_path / "copy", clock=FakeClock())
