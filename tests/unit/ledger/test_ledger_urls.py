"""A ledger URL that cannot work is one sentence."""

import pytest

from mlops.clock import FakeClock
from mlops.errors import LedgerError
from mlops.ledger.connection import open_ledger

CASES = {
    "no URL at all": "garbage",
    "a folder that cannot be made": "sqlite:////proc/none/ledger.sqlite",
    "a driver that is not installed": "mysql+nodriver://localhost/ledger",
    "a file that cannot be opened": "sqlite:////proc/version/ledger.sqlite",
}


@pytest.mark.parametrize("url", CASES.values(), ids=CASES.keys())
def test_a_ledger_that_cannot_be_opened_is_one_sentence(url: str) -> None:
    with pytest.raises(LedgerError, match="cannot be opened") as raised:
        open_ledger(url, FakeClock())
    assert "MLOPS_LEDGER" in raised.value.hint


def test_a_password_is_not_shown() -> None:
    with pytest.raises(LedgerError) as raised:
        open_ledger("mysql+nodriver://ada:hush-hush@localhost/ledger", FakeClock())
    assert "hush-hush" not in str(raised.value)
