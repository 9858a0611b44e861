"""A report becomes a case: every way to write a request, every relation, and never the reported row itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlops.errors import ProjectError, Refusal
from mlops.incidents.request import Features, parse_change, parse_relation, read_row
from mlops.incidents.synthesis import plan_neighbourhood, step_of, synthesise, to_plain
from mlops.serving.server.contract import Column, Contract, OutputColumn

AGE = Column("age", "float32", (), "number", 17, 90, True, None)
SPEND = Column("spend", "float32", (), "number", 0, 500, False, None)
PLAN = Column("plan", "int64", (), "category", None, None, False, ("basic", "plus", "max"))
CONTRACT = Contract("churn", (AGE, SPEND, PLAN), (OutputColumn("probabilities", (2,)),), ("no", "yes"))
PLAIN = {"age": 40, "spend": 80.5, "plan": "plus"}
ROW = {
    "age": np.array([40], np.float32),
    "spend": np.array([80.5], np.float32),
    "plan": np.array([1], np.int64),
}
REQUESTS = {
    "one object of inputs": PLAIN,
    "records": {"dataframe_records": [PLAIN]},
    "split": {"dataframe_split": {"columns": list(PLAIN), "data": [list(PLAIN.values())]}},
    "instances": {"instances": [PLAIN]},
    "columns": {"inputs": {name: [value] for name, value in PLAIN.items()}},
    "protocol v2": {
        "inputs": [
            {"name": "age", "datatype": "FP32", "shape": [1], "data": [40]},
            {"name": "spend", "datatype": "FP32", "shape": [1], "data": [80.5]},
            {"name": "plan", "datatype": "BYTES", "shape": [1], "data": ["plus"]},
        ]
    },
}


@pytest.mark.parametrize("form", REQUESTS)
def test_a_request_is_read_as_it_was_sent(form: str) -> None:
    row = read_row(json.dumps(REQUESTS[form]).encode(), CONTRACT, number=None)
    assert {name: values.tolist() for name, values in row.items()} == {n: v.tolist() for n, v in ROW.items()}


WRONG = {
    "not JSON": (b"{", None, "not JSON"),
    "an input is missing": (json.dumps({"age": 40}).encode(), None, "missing: spend, plan"),
    "a category nobody knows": (json.dumps({**PLAIN, "plan": "gold"}).encode(), None, "'gold' is not one of"),
    "out of range": (json.dumps({**PLAIN, "age": 7}).encode(), None, "not between 17 and 90"),
    "two rows and no word which": (json.dumps({"instances": [PLAIN, PLAIN]}).encode(), None, "2 rows"),
    "a row that is not there": (json.dumps({"instances": [PLAIN]}).encode(), 1, "rows 0 … 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_request_of_this_model_is_one_sentence(case: str) -> None:
    body, number, words = WRONG[case]
    with pytest.raises(ProjectError) as caught:
        read_row(body, CONTRACT, number=number)
    assert words in caught.value.message


RELATIONS = {
    "equals >50K": {"kind": "equals", "answer": ">50K"},
    "is not <=50K": {"kind": "is-not", "answer": "<=50K"},
    "is-not very high": {"kind": "is-not", "answer": "very high"},
    "bound 0.2..0.8": {"kind": "bound", "minimum": 0.2, "maximum": 0.8},
    "bound ..0.3": {"kind": "bound", "minimum": 0.0, "maximum": 0.3},
    "invariant sex": {"kind": "invariant", "column": "sex"},
    "monotone hours 5": {"kind": "monotone", "column": "hours", "step": 5.0},
}


@pytest.mark.parametrize("text", RELATIONS)
def test_what_should_hold_is_written_in_words(text: str) -> None:
    found = parse_relation(text)
    assert {name: getattr(found, name) for name in RELATIONS[text]} == RELATIONS[text]


@pytest.mark.parametrize("text", ["", "equals", "bound", "bound high", "better than x", "monotone hours far"])
def test_what_does_not_say_what_should_hold_is_refused(text: str) -> None:
    with pytest.raises(ProjectError, match="does not say what should hold"):
        parse_relation(text)


@pytest.mark.parametrize("text", ["age", ":5", "age:", "age:0"])
def test_a_change_that_changes_nothing_is_refused(text: str) -> None:
    with pytest.raises(ProjectError, match="does not say what may vary"):
        parse_change(text)


def nobody(features: Features) -> np.ndarray:
    return np.zeros(len(features["age"]), dtype=bool)


def over_thirty(features: Features) -> np.ndarray:
    return features["age"] > 30


@pytest.mark.parametrize("seed", range(20))
def test_the_case_is_a_neighbour_that_fails_too_and_is_nobodys_row(seed: int) -> None:
    made = synthesise(ROW, CONTRACT, is_wrong=over_thirty, is_known=nobody, seed=seed)
    assert not isinstance(made, Refusal)
    assert over_thirty(made)[0]
    changed = [name for name in ROW if made[name][0] != ROW[name][0]]
    assert {"age", "spend"} <= set(changed)
    for name, column in CONTRACT.by_name.items():
        column.check_numbers(made[name].tolist())  # raises when the contract would not take it
        if column.categories is None:
            step = step_of(float(ROW[name][0]), column)
            assert abs(float(made[name][0]) - float(ROW[name][0])) <= step + 1e-4
    assert {change.column for change in plan_neighbourhood(made, CONTRACT)} == {"age", "spend"}
    assert to_plain(made, CONTRACT)["plan"] in PLAN.categories  # type: ignore[operator]


def test_rows_of_the_data_are_never_taken() -> None:
    def in_data(features: Features) -> np.ndarray:
        return features["plan"] != 2

    made = synthesise(ROW, CONTRACT, is_wrong=over_thirty, is_known=in_data)
    assert not isinstance(made, Refusal)
    assert made["plan"][0] == 2


def test_when_only_the_reported_row_fails_there_is_no_case() -> None:
    def only_this(features: Features) -> np.ndarray:
        return np.logical_and.reduce([features[name] == ROW[name][0] for name in ROW])

    made = synthesise(ROW, CONTRACT, is_wrong=only_this, is_known=nobody)
    assert isinstance(made, Refusal)
    assert made.reasons[0].code == "no-synthetic-case"
