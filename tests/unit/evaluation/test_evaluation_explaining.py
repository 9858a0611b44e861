"""One answer explained: grounds that add up, the nearest way to another answer, and the training rows behind it."""

import numpy as np
import pytest
import torch

from mlops.evaluation import planted
from mlops.evaluation.explaining import Explanation, explain_row
from mlops.evaluation.influence import measure_influence
from mlops.evaluation.surface_rules import Change
from mlops.evaluation.twins import Twin
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.training.audit_pool import AuditMatrix


def explain(*changes: Change, merit: float = -0.2, hours: float = 40, sector: int = 0) -> Explanation:
    row = {
        "merit": np.array([merit], np.float32), "hours": np.array([hours], np.float32),
        "sector": np.array([sector]), "area": np.array([0]),
    }  # fmt: skip
    model = planted.judged_of_score(planted.honest, name="m")
    return explain_row(
        model, row, background=planted.make_rows(500, seed=1), changes=changes, favourable="granted", seed=0
    )


HOURS, SECTOR = Change(column="hours", up=20, down=20), Change(column="sector", to=("office", "shop"))


def test_the_grounds_and_the_base_add_up_to_the_answer() -> None:
    told = explain()
    assert told.answer == "refused"
    assert told.base + sum(ground.log_odds for ground in told.grounds) == pytest.approx(told.log_odds, abs=1e-6)
    assert told.completeness_error < 1e-6
    assert told.grounds[-1].column == "area"
    assert told.grounds[-1].log_odds == pytest.approx(0, abs=1e-9)


REACH = {
    "hours alone reach it, by the smallest step that does": ((HOURS,), -0.2, (("hours", "40", "52"),)),
    "one claim is enough and cheaper than two": ((HOURS, SECTOR), -0.1, (("hours", "40", "48"),)),
    "both are needed": ((HOURS, SECTOR), -0.55, (("hours", "40", "60"), ("sector", "field", "office"))),
}


@pytest.mark.parametrize("case", REACH)
def test_the_nearest_change_within_what_a_person_can_change(case: str) -> None:
    changes, merit, expected = REACH[case]
    told = explain(*changes, merit=merit)
    assert told.counterfactual is not None
    assert told.counterfactual.changes == expected
    assert told.counterfactual.answer == "granted"


def test_when_nothing_helps_it_says_so_with_the_best_that_can_be_had() -> None:
    told = explain(HOURS, merit=-3)
    assert told.counterfactual is None
    assert "nothing you can change helps" in told.counterfactual_text
    assert told.best_probability == pytest.approx(1 / (1 + np.exp(6 - 1)), rel=1e-3)
    assert explain().best_probability is None


class Shift(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, columns: planted.Columns) -> torch.Tensor:
        score = columns["merit"] * 0 + self.by
        return torch.stack([torch.zeros_like(score), score], dim=1)


def twins(shifts: list[float]) -> tuple[Twin, ...]:
    return tuple(Twin(number, 0.0, "", lambda by=by: Shift(by)) for number, by in enumerate(shifts))


def test_the_row_that_moves_the_answer_is_found_and_chance_is_named() -> None:
    """Row 7 of the pool adds 2.0 to every trial that saw it; the rest is noise."""
    rng = np.random.default_rng(0)
    members = rng.random((24, 40)) < 0.5
    shifts = 2.0 * members[:, 7] + rng.normal(0, 0.3, 24)
    matrix = AuditMatrix(np.arange(100, 140), members, np.zeros((24, 40), np.float32), tuple(range(24)))
    row = {"merit": np.zeros(1, np.float32)}
    found = measure_influence(row, twins=twins(shifts.tolist()), matrix=matrix, class_=1, count=3)
    assert found[0].row == 107
    assert found[0].log_odds == pytest.approx(2.0, abs=0.4)
    assert found[0].p_value < 1e-6
    assert found[1].p_value > 0.05
    with pytest.raises(NotEvaluableError, match="4 are needed"):
        measure_influence(row, twins=twins([1.0, 2.0]), matrix=matrix, class_=1, count=3)
