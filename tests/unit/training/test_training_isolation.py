"""Which groups each member reads, and which folders a purge finds."""

import json

import pytest

from mlops.errors import TrainingError
from mlops.training.isolation import find_slices, split_groups
from mlops.training.optuna_search import only_point
from mlops.training.spec import Isolation


@pytest.mark.parametrize(("groups", "slices", "end"), [(2, 1, 2), (3, 2, 9), (4, 3, 35)])
def test_every_group_is_read_by_one_slice_of_one_member(groups, slices, end):
    parts = split_groups(0, end, Isolation(groups=groups, slices=slices))
    assert (len(parts), {len(member) for member in parts}) == (groups, {slices})
    assert sorted(group for member in parts for part in member for group in part) == list(range(end))
    sizes = [len(part) for member in parts for part in member]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 1


def test_more_slices_than_groups_of_people_are_refused():
    with pytest.raises(TrainingError, match="isolation needs 4 x 3 groups of people, the train split has 11"):
        split_groups(0, 11, Isolation(groups=4, slices=3))


def test_stages_cost_about_as_much_as_the_winner():
    assert [Isolation(groups=2, slices=r).stage_epochs(12) for r in (1, 2, 5, 100)] == [12, 8, 4, 1]


def test_isolation_and_an_audit_pool_exclude_each_other(stage):
    with pytest.raises(ValueError, match="isolation and audit_pool exclude each other"):
        stage.spec(isolation={"groups": 2}, audit_pool=20)
    with pytest.raises(ValueError, match="`member` is given by the machine"):
        stage.spec(isolation={"groups": 2}, fixed={"member": 1})


def test_a_purge_finds_what_saw_a_shard(tmp_path):
    for folder, shards in {"slices/a": ["1", "2"], "slices/b": ["2"], "ensembles/c": ["1", "2"]}.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "shards.json").write_text(json.dumps({"shards": shards}))
    assert find_slices(tmp_path, shards=["1"]) == [tmp_path / "ensembles/c", tmp_path / "slices/a"]
    assert find_slices(tmp_path, shards=["3"]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"trials": 1, "first": [{"learning_rate": 0.02}], "fixed": {"dropout": 0.3}},
            {"learning_rate": 0.02, "dropout": 0.3},
        ),
        ({"trials": 2, "first": [{"learning_rate": 0.02}]}, None),
        ({"trials": 1, "first": [{}]}, None),
        ({"trials": 1}, None),
    ],
)
def test_a_sweep_with_one_whole_point_searches_nothing(stage, changes, expected):
    assert only_point(stage.spec(**changes)) == expected
