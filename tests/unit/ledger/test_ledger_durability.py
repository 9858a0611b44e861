"""A change is forced to the disk before its writer goes on."""

import sys

import pytest

from mlops.clock import SystemClock
from mlops.ledger.connection import open_ledger, sqlite_url

_watched: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if event == "open" and _watched is not None:
        _watched.append(str(arguments[0]))


sys.addaudithook(_watch)  # sees what Python itself opens; SQLite's own files are opened in C


@pytest.mark.parametrize("fails", [False, True], ids=["a commit is forced", "what was rolled back is not"])
def test_the_log_is_forced_after_each_commit(tmp_path, fails):
    global _watched
    ledger = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), SystemClock())
    _watched = []
    try:
        with ledger.write() as transaction:
            transaction.append("thing.changed", "it", {})
            assert not any(path.endswith("-wal") for path in _watched)
            if fails:
                raise KeyError("the caller gave up")
    except KeyError:
        pass
    finally:
        opened, _watched = _watched, None
    ledger.close()
    assert any(path.endswith("ledger.sqlite-wal") for path in opened) is not fails
