"""Only the products whose inputs changed are baked."""

from pathlib import Path

import pytest

from mlops.places import Places
from mlops.project.changes import find_changed_products, plan_changed_products

DATASETS = {"income": "adult", "digits": "digits", "churn": "adult"}
PINS = {"datasets/adult": "a.dir", "datasets/digits": "d.dir"}

CASES = {
    "a README concerns nobody": (["README.md", "docs/data.md", "tests/unit/test_x.py"], PINS, []),
    "a trainer concerns its product": (["training/income.py"], PINS, ["income"]),
    "a policy concerns its product": (["evaluation/digits.yaml"], PINS, ["digits"]),
    "a recipe concerns the products on that dataset": (["datasets/adult.yaml"], PINS, ["churn", "income"]),
    "the lock concerns everybody": (["requirements.lock"], PINS, ["churn", "digits", "income"]),
    "the machine concerns everybody": (["mlops/datasets/plan.py"], PINS, ["churn", "digits", "income"]),
    "a new pin concerns the products on that dataset": (
        ["datasets.dvc"],
        {**PINS, "datasets/digits": "e.dir"},
        ["digits"],
    ),
    "an incident of a product concerns it": (["evaluation/incidents/income-0001.yaml"], PINS, ["income"]),
    "a similar name concerns nobody": (["training/income2.py", "training/incom.yaml"], PINS, []),
}


@pytest.mark.parametrize(("files", "pins_after", "expected"), CASES.values(), ids=CASES.keys())
def test_changed_products(files: list[str], pins_after: dict[str, str], expected: list[str]) -> None:
    assert plan_changed_products(DATASETS, changed_files=files, pins_before=PINS, pins_after=pins_after) == expected


def test_where_no_commit_was_before_everything_changed(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    for name in ("income", "digits"):
        (tmp_path / "training" / f"{name}.yaml").touch()
    assert find_changed_products(Places(tmp_path), base="0" * 40, head="HEAD") == ["digits", "income"]
