"""What holds between columns, and what may only rise, holds for every row that an attack or a counterfactual makes."""

from typing import Any

import numpy as np
import pytest
import torch

from mlops.errors import ProjectError
from mlops.evaluation import planted
from mlops.evaluation.attack_surface import RelaxedModel, Surface, plan_surface
from mlops.evaluation.explaining import explain_row
from mlops.evaluation.rows import Rows
from mlops.evaluation.surface_rules import Change, Constraint
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.specs import parse_spec

HOURS, MERIT = Change(column="hours", up=3, down=3), Change(column="merit", up=12, down=12)
SECTOR, AREA = Change(column="sector", to="any"), Change(column="area", to="any")
RISING = Change(column="sector", to=("shop", "field", "works"), rising=True)
MERIT_BELOW_HOURS = Constraint(column="merit", at_most="hours", plus=-40)
NOT_TOGETHER = Constraint(never={"sector": ("office", "works"), "area": ("south",)})


def surface_of(*changes: Change, constraints: tuple[Constraint, ...] = ()) -> Surface:
    rows = planted.make_rows(400, seed=3)
    return plan_surface(rows, contract=planted.CONTRACT, changes=changes, constraints=constraints)


def decoded(surface: Surface) -> dict[str, np.ndarray[Any, Any]]:
    wild = np.random.default_rng(0).normal(0, 5, (400, surface.width)).astype(np.float32)
    wild[:, 0] = np.arange(400)
    features = surface.decode(wild)
    assert surface.count_infeasible(features, chosen=np.arange(400)) == 0
    return features


def test_a_number_stays_below_the_one_that_bounds_it_and_still_moves() -> None:
    surface = surface_of(HOURS, MERIT, constraints=(MERIT_BELOW_HOURS,))
    own, features = surface.rows.features, decoded(surface)
    was_kept = own["merit"] <= own["hours"] - 40
    assert (features["merit"] <= features["hours"] - 40 + 1e-4)[was_kept].all()
    is_moved = was_kept & (features["merit"] != own["merit"])
    is_at_bound = np.isclose(features["merit"], features["hours"] - 40, atol=1e-4)
    assert (is_moved & is_at_bound).sum() > 10  # lowered to the bound, not given up
    assert (decoded(surface_of(HOURS, MERIT))["merit"] > features["hours"] - 40)[was_kept].any()


def test_values_that_exclude_each_other_are_not_claimed_together() -> None:
    def together(features: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.isin(features["sector"], (1, 3)) & (features["area"] == 1)

    surface = surface_of(SECTOR, AREA, constraints=(NOT_TOGETHER,))
    was_kept = ~together(surface.rows.features)
    assert not together(decoded(surface))[was_kept].any()
    assert together(decoded(surface_of(SECTOR, AREA)))[was_kept].any()


def test_the_independent_check_counts_what_breaks_a_constraint() -> None:
    surface = surface_of(HOURS, MERIT, SECTOR, AREA, constraints=(MERIT_BELOW_HOURS, NOT_TOGETHER))
    own = surface.rows.features
    was_kept = own["merit"] <= own["hours"] - 40
    low = {**own, "hours": own["hours"] - 3}
    expected = was_kept & (own["merit"] > low["hours"] - 40)
    assert surface.count_infeasible(low, chosen=np.arange(400)) == expected.sum() > 0


def test_a_category_that_may_only_rise_never_falls() -> None:
    surface = surface_of(RISING)
    own, found = surface.rows.features["sector"], decoded(surface)["sector"]
    rank = np.array([1, -1, 0, 2])  # shop, field, works; the office is on no ladder
    assert (found == own)[own == 1].all()
    assert (rank[found] >= rank[own]).all()
    assert (found != own).any()
    fallen = {**surface.rows.features, "sector": np.full_like(own, 2)}  # everybody a shop
    assert surface.count_infeasible(fallen, chosen=np.arange(400)) == (own != 2).sum()


def test_the_relaxed_model_sees_no_gain_in_what_a_row_may_not_claim() -> None:
    surface = surface_of(RISING)
    module = planted.judged_of_score(lambda columns: 10.0 * (columns["sector"] == 2), name="m").load_module()
    relaxed = RelaxedModel(module, surface, contract=planted.CONTRACT)
    flat = torch.from_numpy(surface.encode())
    claimed = flat.clone()
    claimed[:, 1 + 2] = 1.0  # half a shop, which nobody can rise to
    assert torch.equal(relaxed(flat), relaxed(claimed))


def test_a_counterfactual_keeps_to_it_too() -> None:
    row = {"merit": np.array([-0.2], np.float32), "hours": np.array([40], np.float32)}
    codes = {"sector": np.array([0]), "area": np.array([1])}
    told = [
        explain_row(
            planted.judged_of_score(planted.honest, name="m"),
            {**row, **codes},
            background=planted.make_rows(50, seed=1),
            changes=(Change(column="sector", to=("office",)), Change(column="hours", up=4)),
            constraints=constraints,
            favourable="granted",
            seed=0,
        ).counterfactual
        for constraints in ((), (NOT_TOGETHER,))
    ]
    assert told[0] is not None
    assert ("sector", "field", "office") in told[0].changes
    assert told[1] is None


WRONG = {
    "nothing": "{}",
    "one column": "{column: hours, at_most: hours}",
    "both kinds": "{column: hours, at_most: merit, never: {sector: [shop], area: [west]}}",
    "a combination of one": "{never: {sector: [shop]}}",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_constraint_that_says_nothing_is_refused(case: str) -> None:
    with pytest.raises(ProjectError):
        parse_spec(WRONG[case], Constraint, source="policy")


UNFIT = {
    "categories are not in order": Constraint(column="sector", at_most="hours"),
    "an unknown category": Constraint(never={"sector": ("mine",), "area": ("west",)}),
    "a number has no categories": Constraint(never={"hours": ("40",), "area": ("west",)}),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_constraint_that_does_not_fit_the_model_is_not_evaluable(case: str) -> None:
    with pytest.raises(NotEvaluableError):
        surface_of(SECTOR, constraints=(UNFIT[case],))


def test_rows_that_broke_it_before_are_left_alone() -> None:
    rows = planted.make_rows(400, seed=3)
    broken = Rows(features={**rows.features, "hours": np.zeros(400, np.float32)}, labels=rows.labels, groups={})
    surface = plan_surface(
        broken,
        contract=planted.CONTRACT,
        changes=(MERIT,),
        constraints=(Constraint(column="merit", at_most="hours", plus=-9),),
    )
    assert surface.count_infeasible(surface.decode(surface.encode()), chosen=np.arange(400)) == 0
