"""A ledger goes into a snapshot and back out of it into SQLite and PostgreSQL alike, from either."""

import runpy
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlops.clock import FakeClock
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.ledger.copying import replace_ledger, snapshot_ledger, verify_snapshot
from mlops.ledger.sql_events import load_events

_FILE = Path(__file__).parents[1] / "budgets" / "test_budgets_lease_book.py"
postgres_url = runpy.run_path(str(_FILE), run_name="budgets_contract")["postgres_url"]


@pytest.fixture
def open_kind(request, tmp_path):
    """A fresh ledger of a kind, and its address."""
    opened = []

    def open_it(kind, name):
        url = sqlite_url(tmp_path / f"{name}.sqlite")
        if kind == "postgresql":
            url = request.getfixturevalue("postgres_url")
            engine = sa.create_engine(url)
            with engine.begin() as connection:
                connection.execute(sa.text("DROP SCHEMA public CASCADE"))
                connection.execute(sa.text("CREATE SCHEMA public"))
            engine.dispose()
        opened.append(open_ledger(url, FakeClock()))
        return opened[-1], url

    yield open_it
    for ledger in opened:
        ledger.close()


def fill(ledger, count):
    for number in range(count):
        with ledger.write() as transaction:
            transaction.append("it.happened", str(number), {"größe": number, "none": None})


def events(url):
    ledger = open_ledger(url, FakeClock())
    with ledger.read() as connection:
        found = list(load_events(connection))
    ledger.close()
    return found


KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.system)]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_what_was_in_it_is_in_it_again(open_kind, tmp_path, source, target):
    ledger, url = open_kind(source, "source")
    fill(ledger, 1_203)
    expected = events(url)
    snapshot_ledger(ledger, tmp_path / "copy", clock=FakeClock())
    ledger.close()
    other, target_url = open_kind(target, "target")
    fill(other, 5)
    other.close()
    verify_snapshot(tmp_path / "copy", clock=FakeClock())
    replace_ledger(target_url, tmp_path / "copy", clock=FakeClock())
    assert events(target_url) == expected and len(expected) == 1_203
    again = open_ledger(target_url, FakeClock())
    fill(again, 1)
    again.close()
    assert len(events(target_url)) == 1_204
