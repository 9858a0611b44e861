"""The scoring formats of MLflow and SageMaker give one answer for one row."""

import pytest

ROW = {"age": 39, "hours": 40.5, "gain": 7, "workclass": "Private", "sex": "Male", "history": [[0, 0.5, 1], [-1, 0, 0]]}
OTHER = {**ROW, "age": 71, "sex": "Female"}
SAME = {
    "dataframe_split": {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values()), list(OTHER.values())]}},
    "dataframe_records": {"dataframe_records": [ROW, OTHER]},
    "inputs by column": {"inputs": {name: [ROW[name], OTHER[name]] for name in ROW}},
    "instances by row": {"instances": [ROW, OTHER]},
    "codes": {"instances": [{**ROW, "workclass": 1, "sex": 1}, {**OTHER, "workclass": 1, "sex": 0}]},
    "columns of one": {
        "inputs": {name: [[ROW[name]], [OTHER[name]]] if name == "age" else [ROW[name], OTHER[name]] for name in ROW}
    },
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_all_formats_say_the_same(server, content):
    reference = server.score(SAME["dataframe_records"]).json()["predictions"]
    answer = server.score(content)
    assert answer.status == 200, answer.body
    assert answer.json()["predictions"] == reference
    assert [set(row) for row in reference] == [{"label", "probabilities"}] * 2


BAD = {
    "two formats": ({**SAME["dataframe_records"], **SAME["instances by row"]}, "exactly one of"),
    "no format": ({}, "exactly one of"),
    "a list": ([], "not a JSON object"),
    "no rows": ({"instances": []}, "list of objects"),
    "rows of other fields": ({"instances": [ROW, {"age": 1}]}, "same fields"),
    "a missing column": ({"instances": [{key: ROW[key] for key in list(ROW)[1:]}]}, "missing: age"),
    "an unknown column": ({"instances": [{**ROW, "name": "x"}]}, "unknown: name"),
    "ragged columns": ({"inputs": {**{name: [ROW[name]] for name in ROW}, "age": [1, 2]}}, "same number of rows"),
    "a column twice": ({"dataframe_split": {"columns": ["age", "age"], "data": []}}, "each standing once"),
    "short rows": ({"dataframe_split": {"columns": list(ROW), "data": [[1]]}}, "a list of 6 values"),
    "an unknown category": ({"instances": [{**ROW, "sex": "?"}]}, "not one of Female, Male"),
    "a missing value": ({"instances": [{**ROW, "age": None}]}, "None is not a number"),
    "a missing category": ({"instances": [{**ROW, "sex": None}]}, "None is not one of Female, Male"),
    "a ragged tensor": ({"instances": [{**ROW, "history": [[0, 1], [2]]}]}, "history"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD.values(), ids=BAD)
def test_bad_tables_are_refused_with_their_reason(server, content, sentence):
    answer = server.score(content)
    assert answer.status == 400
    assert sentence in answer.json()["error"]


def test_csv_needs_columns_without_tensors(server):
    answer = server.score(b"age,hours\n39,40\n", kind="text/csv")
    assert answer.status == 400
    assert "missing: gain, workclass, sex, history" in answer.json()["error"]
    assert server.score(b"\xff", kind="text/csv").status == 400
    assert server.score(b"{}", kind="application/xml").status == 415
