"""What `training/income.py` promises beside the trainer contract; `mlops trainer check income` runs it too."""

from pathlib import Path

import pytest
import torch

from mlops.training.trainer import load_trainer

PARAMS = {"columns": {"age": 0, "gain": 0, "work": 7}, "classes": 2, "width": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def income():
    return load_trainer(Path(__file__).parents[3] / "training" / "income.py")


def columns(rows):
    torch.manual_seed(1)
    return {"age": torch.rand(rows) * 90, "gain": torch.rand(rows) * 99_999, "work": torch.randint(0, 7, (rows,))}


def test_a_row_is_answered_alike_whatever_rows_lie_beside_it(income):
    model, rows = income.model(PARAMS).eval(), columns(9)
    alone = torch.cat([model({name: values[n : n + 1] for name, values in rows.items()}) for n in range(9)])
    assert torch.allclose(model(rows), alone, atol=1e-6)


def test_amounts_below_zero_and_huge_ones_give_numbers(income):
    model = income.model(PARAMS).eval()
    rows = {"age": torch.tensor([-1.0, 1e9]), "gain": torch.tensor([0.0, 1e12]), "work": torch.tensor([0, 6])}
    assert torch.isfinite(model(rows)).all()


@pytest.mark.parametrize(
    ("chances", "expected"),
    [([0.2, 0.4, 0.2, 0.4], 0.2), ([0.5, 0.5, 0.5, 0.5], 0.0), ([1.0, 0.0, 1.0, 0.0], 1.0)],
)
def test_the_gap_is_the_difference_of_means_between_the_sexes(income, chances, expected):
    sex = torch.tensor([0, 1, 0, 1])
    assert income.gap(torch.tensor(chances), torch.ones(4), sex).item() == pytest.approx(expected)


def test_the_gap_of_a_batch_without_one_sex_is_a_number(income):
    assert torch.isfinite(income.gap(torch.tensor([0.3, 0.4]), torch.ones(2), torch.tensor([1, 1])))
