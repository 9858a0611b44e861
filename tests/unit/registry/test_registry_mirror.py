"""Operations and how they fold, without MLflow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.registry.mirror import Operation, fold_operations, make_handle


def say(kind: str, run: str, at_us: int = 1, **body: object) -> Operation:
    return Operation(kind=kind, run=run, at_us=at_us, body=body)  # type: ignore[arg-type]


def test_operations_fold_to_one_change_per_run_in_the_order_of_first_mention():
    changes = fold_operations(
        [
            say("start", "a", 1, name="a"),
            say("metrics", "b", 2, metrics={"loss": 1.0}, step=0),
            say("metrics", "a", 3, metrics={"loss": 2.0}, step=0),
            say("metrics", "a", 4, metrics={"loss": 1.5}, step=1),
            say("tags", "a", 5, tags={"x": "old"}),
            say("tags", "a", 6, tags={"x": "new"}),
            say("file", "a", 7, path="/f", folder="gate"),
            say("end", "a", 8, status="FINISHED"),
        ]
    )
    assert [change.run for change in changes] == ["a", "b"]
    assert changes[0].metrics == [("loss", 2.0, 0, 3), ("loss", 1.5, 1, 4)]
    assert changes[0].tags == {"x": "new"}
    assert changes[0].status == ("FINISHED", 8)
    assert changes[1].status is None


def test_a_run_that_ended_and_starts_again_runs():
    (change,) = fold_operations([say("start", "a"), say("end", "a", status="KILLED"), say("start", "a", 9)])
    assert change.status == ("RUNNING", 9)


@given(st.floats(allow_nan=True, allow_infinity=True), st.text(), st.integers(min_value=0))
def test_an_operation_survives_its_line(value: float, name: str, at_us: int):
    operation = say("metrics", "a", at_us, metrics={name: value}, step=1)
    line = operation.to_line()
    assert "\n" not in line
    back = Operation.from_line(line)
    again = back.body["metrics"][name]
    assert again == value or (math.isnan(again) and math.isnan(value))
    assert (back.at_us, back.kind, back.run) == (at_us, "metrics", "a")


@pytest.mark.parametrize("line", ["", "{", '{"kind": "end"}', "[]", '"text"', "null"])
def test_a_damaged_line_is_said(line: str):
    with pytest.raises(ValueError, match="not an operation"):
        Operation.from_line(line)


def test_a_handle_follows_from_its_key_alone():
    assert make_handle("sweep-1/3") == make_handle("sweep-1/3")
    assert make_handle("sweep-1/3") != make_handle("sweep-1/4")
    assert make_handle("x").startswith("mirror-")
