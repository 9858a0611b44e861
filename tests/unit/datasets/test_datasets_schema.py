import copy

import pytest
import yaml

from mlops.datasets.recipe import Recipe
from mlops.datasets.schema import Schema, refuse_purpose, render_schema
from mlops.errors import ProjectError
from mlops.specs import parse_spec

SCHEMA = {
    "name": "people",
    "title": "People",
    "source": "people.csv",
    "credit": "us",
    "licence": "CC0-1.0",
    "lawful_basis": "synthetic",
    "purposes": ["model_training"],
    "subject": "raw column person",
    "subject_key": {"public": "k"},
    "groups": 4,
    "splits": {"train": [0, 3], "test": [3, 4]},
    "columns": [
        {"name": "age", "kind": "number", "roles": ["feature"]},
        {"name": "sex", "kind": "category", "roles": ["feature", "sensitive"], "categories": ["f", "m"]},
        {"name": "left", "kind": "category", "roles": ["label"], "categories": ["no", "yes"]},
    ],
}


def changed(**changes):
    schema = copy.deepcopy(SCHEMA)
    schema.update(changes)
    return schema


def with_column(**column):
    return changed(columns=[*SCHEMA["columns"], column])


BROKEN = {
    "two labels": (with_column(name="x", kind="category", roles=["label"], categories=["a"]), "exactly one column"),
    "no feature": (changed(columns=SCHEMA["columns"][2:]), "no column has the role `feature`"),
    "a column named twice": (with_column(name="age", kind="number", roles=["ignored"]), "columns named twice"),
    "a gap between splits": (changed(splits={"train": [0, 2], "test": [3, 4]}), "splits must cover"),
    "splits that overlap": (changed(splits={"train": [0, 3], "test": [2, 4]}), "splits must cover"),
    "splits that end early": (changed(splits={"train": [0, 2], "test": [2, 3]}), "splits end at group 3"),
    "both kinds of key": (changed(subject_key={"public": "a", "secret": "B"}), "exactly one of `public`"),
    "categories on a number": (
        with_column(name="x", kind="number", roles=["ignored"], categories=["a"]),
        "`categories` stands exactly",
    ),
    "a tensor without shape": (with_column(name="x", kind="tensor", roles=["feature"]), "`shape` stands exactly"),
    "a sensitive number": (
        with_column(name="x", kind="number", roles=["sensitive"]),
        "a sensitive column is a category",
    ),
    "a label that is a feature": (
        with_column(name="x", kind="category", roles=["label", "feature"], categories=["a"]),
        "a label has no other role",
    ),
    "a column called subject": (with_column(name="subject", kind="number", roles=["ignored"]), "is kept for"),
    "a field nobody knows": (changed(colour="red"), "unknown field"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_schema_is_refused_for(case):
    content, words = BROKEN[case]
    with pytest.raises(ProjectError) as caught:
        parse_spec(yaml.safe_dump(content), Schema, source="dataset.yaml")
    assert words in "\n".join(caught.value.items)


def test_roles_select_columns():
    schema = Schema.model_validate(SCHEMA)
    assert [column.name for column in schema.features] == ["age", "sex"]
    assert [column.name for column in schema.sensitive] == ["sex"]
    assert (schema.label.name, schema.weight, schema.time) == ("left", None, None)
    assert [column.dtype for column in schema.columns] == ["float32", "int64", "int64"]
    assert [schema.split_of_group(group) for group in range(4)] == ["train", "train", "train", "test"]


def test_rendering_and_parsing_give_the_same_schema_and_digest():
    schema = Schema.model_validate(SCHEMA)
    again = parse_spec(render_schema(schema), Schema, source="dataset.yaml")
    assert again == schema
    assert again.digest == schema.digest
    assert Schema.model_validate(changed(title="Persons")).digest != schema.digest


def test_an_alias_to_an_unknown_category_is_refused(people):
    people.recipe["columns"][1]["aliases"] = {"": "absent"}
    with pytest.raises(ProjectError) as caught:
        parse_spec(yaml.safe_dump(people.recipe), Recipe, source="people.yaml")
    assert "unknown categories: absent" in "\n".join(caught.value.items)


def test_another_purpose_than_allowed_is_refused_with_its_reason():
    schema = Schema.model_validate(SCHEMA)
    assert refuse_purpose(schema, "model_training") is None
    refusal = refuse_purpose(schema, "advertising")
    assert refusal.reasons[0].code == "purpose-not-allowed"
    assert "lawful basis: synthetic" in refusal.render_text()
