import pytest

from mlops.datasets.drift import draw_drift, measure_drift


def test_equal_versions_do_not_drift(version):
    assert {drift.distance for drift in measure_drift(version, version)} == {0.0}


def test_a_column_that_moved_comes_first_with_its_distance(people, version, stored, tmp_path):
    for row in people.rows:
        row["region"] = "north"
        row["age"] = str(int(row["age"]) + 1)
    moved = stored(people.write().build(tmp_path / "moved"), tmp_path / "objects")
    drifts = {drift.column: drift.distance for drift in measure_drift(version, moved)}
    assert 0.4 < drifts["region"] < 0.6
    assert 0 < drifts["age"] < 0.1
    assert drifts["plan"] == drifts["left"] == 0
    assert next(iter(drifts)) == "region"


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture_is_drawn(version, tmp_path, ending):
    draw_drift(measure_drift(version, version), tmp_path / f"drift.{ending}", title="same")
    assert (tmp_path / f"drift.{ending}").stat().st_size > 1000


def test_categories_are_compared_by_name_and_not_by_code(people, version, stored, tmp_path):
    people.recipe["columns"][2]["categories"] = ["south", "north"]
    turned = stored(people.write().build(tmp_path / "turned"), tmp_path / "objects")
    assert {drift.column: drift.distance for drift in measure_drift(version, turned)}["region"] == 0
