import numpy as np
import pyarrow as pa
import pytest

from mlops.datasets.formats import RawBlock
from mlops.datasets.recipe import Recipe
from mlops.datasets.subjects import hash_subject
from mlops.datasets.typing_rows import Violations, type_block
from mlops.errors import DatasetError


def type_columns(people, columns, raw, **changes):
    recipe = Recipe.model_validate({**people.recipe, **changes, "columns": [*columns, people.recipe["columns"][3]]})
    size = len(next(iter(raw.values())))
    table = pa.table({"person": [f"p{i}" for i in range(size)], "left": ["no"] * size, **raw})
    violations = Violations()
    block = RawBlock(table=table, file_name="people.csv", first_line=2)
    return type_block(block, recipe, key=b"k", violations=violations), violations


PLAN = {
    "name": "plan",
    "kind": "category",
    "roles": ["feature"],
    "categories": ["none", "a", "b"],
    "aliases": {"": "none"},
}
AGE = {"name": "age", "kind": "number", "roles": ["feature"], "minimum": 0, "maximum": 99, "integer": True}
BAND = {
    "name": "band",
    "from": "age",
    "kind": "category",
    "roles": ["feature"],
    "categories": ["young", "middle", "old"],
    "bins": [30, 60],
}


def test_a_missing_value_is_a_category_and_no_row_is_dropped(people):
    table, violations = type_columns(people, [PLAN], {"plan": ["b", "", " a", "none"]})
    assert table.column("plan").to_pylist() == [2, 0, 1, 0]
    assert not violations.counts


def test_every_violation_is_counted_by_column_with_examples(people):
    raw = {"plan": ["x", "x", "y", "a"], "age": ["-1", "100", "1.5", "zwei"]}
    _, violations = type_columns(people, [PLAN, AGE], raw)
    assert violations.render_lines() == (
        "age: 1 values are above 99",
        "age: 1 values are below 0",
        "age: 1 values are not numbers, e.g. 'zwei'",
        "age: 1 values are not whole",
        "plan: 3 values are not among `categories`, e.g. 'x', 'y'",
    )


def test_a_missing_number_is_a_violation_or_the_stated_fill(people):
    _, violations = type_columns(people, [AGE], {"age": ["", "7"]})
    assert "are missing and the recipe gives no `fill`" in violations.render_lines()[0]
    table, violations = type_columns(people, [{**AGE, "fill": 0}], {"age": ["", "7"]})
    assert (table.column("age").to_pylist(), not violations.counts) == ([0.0, 7.0], True)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0x10", "1e999"])
def test_what_is_no_finite_number_is_a_violation(people, text):
    _, violations = type_columns(people, [AGE], {"age": [text, "7"]})
    assert violations.counts


def test_bins_cut_at_their_edges(people):
    table, _ = type_columns(people, [BAND], {"age": ["29", "30", "59", "60"]})
    assert table.column("band").to_pylist() == [0, 1, 1, 2]


def test_a_tensor_is_made_of_raw_columns_by_position(people):
    column = {
        "name": "image",
        "kind": "tensor",
        "roles": ["feature"],
        "shape": [1, 2, 2],
        "from_range": [2, 6],
        "divide_by": 2,
        "minimum": 0,
        "maximum": 1,
    }
    table, violations = type_columns(people, [column], {str(k): [str(k % 3), "2"] for k in range(4)})
    assert np.allclose(table.column("image").to_pylist(), [[0, 0.5, 1, 0], [1, 1, 1, 1]])
    assert not violations.counts
    _, violations = type_columns(people, [column], {str(k): ["3", "2"] for k in range(4)})
    assert violations.counts["image", "are outside `minimum` to `maximum` or not finite"] == 4


def test_the_subject_is_its_keyed_hash_and_the_id_is_nowhere(people):
    table, _ = type_columns(people, [PLAN], {"plan": ["a", "b"]})
    assert table.column("subject").to_pylist() == [hash_subject("p0", key=b"k"), hash_subject("p1", key=b"k")]
    assert "person" not in table.column_names


def test_a_synthetic_subject_is_file_and_line(people):
    table, _ = type_columns(people, [PLAN], {"plan": ["a", "b"]}, subject={"file_and_line": True})
    expected = [hash_subject(f"people.csv:{line}", key=b"k") for line in (2, 3)]
    assert table.column("subject").to_pylist() == expected


def test_an_empty_subject_is_a_violation(people):
    _, violations = type_columns(people, [PLAN], {"plan": ["a"], "person": [""]})
    assert violations.counts["subject", "are empty"] == 1


def test_a_raw_column_that_is_not_there_is_named(people):
    with pytest.raises(DatasetError, match="has no column 'plan'"):
        type_columns(people, [PLAN], {"plam": ["a"]})
