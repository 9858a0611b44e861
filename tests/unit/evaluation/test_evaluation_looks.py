"""Looks at a test set: counted by its rows, once per candidate, refused when used up."""

from pathlib import Path

from mlops.clock import FakeClock
from mlops.errors import Refusal
from mlops.evaluation.sql_looks import spend_look
from mlops.ledger.connection import open_ledger, sqlite_url


def test_each_candidate_costs_one_look_and_other_rows_are_fresh(tmp_path: Path) -> None:
    ledger = open_ledger(sqlite_url(tmp_path / "ledger.sqlite"), FakeClock())

    def look(candidate: str, rows: str = "sha256:rows") -> int | Refusal:
        return spend_look(ledger, test_digest=rows, candidate=candidate, product="p", allowed=2)

    assert [look("a"), look("a"), look("b")] == [1, 1, 2]
    refused = look("c")
    assert isinstance(refused, Refusal)
    assert refused.reasons[0].code == "looks-used-up"
    assert look("b") == 2
    assert look("c", rows="sha256:fresh") == 1
    ledger.close()
