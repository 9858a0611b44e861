"""Checks on planted models: what they measure, and that nothing that cannot be evaluated passes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from mlops.clock import SystemClock
from mlops.datasets.schema import Column, Schema, SubjectKey
from mlops.evaluation import planted
from mlops.evaluation.attack_surface import RelaxedModel, plan_surface
from mlops.evaluation.checks import fairness, quality
from mlops.evaluation.checks.table import CHECKS
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.rows import MISSING, Rows, rows_of_table
from mlops.evaluation.surface_rules import Change
from mlops.evaluation.verdicts import GateResult, NotEvaluableError, Verdict
from mlops.specs import parse_spec
from mlops.training.contract import make_contract

HONEST = planted.PLANTED[0]


def policy_of(*checks: str, favourable: str = "granted") -> Policy:
    lines = "\n".join(f"  - {{owner: me, reason: a reason of a sentence, {check}}}" for check in checks)
    head = f"version: 1\nproduct: planted\nfavourable_class: {favourable}\nchecks:\n"
    return parse_spec(head + lines, Policy, source="policy")


def hearing_of(
    policy: Policy,
    *,
    rows: int = 1500,
    change: Callable[[Rows], Rows] | None = None,
    score: planted.Score | None = None,
) -> Hearing:
    hearing = planted.open_planted(HONEST, policy=policy, test_rows=rows, train_rows=rows)
    if change is not None:
        test = change(hearing.test)
        hearing = dataclasses.replace(hearing, load_test=lambda: test, _kept={}, _locks={})
    if score is not None:
        model = planted.judged_of_score(score, name="other")
        hearing = dataclasses.replace(hearing, load_model=lambda: model, _kept={}, _locks={})
    return hearing


def judge(hearing: Hearing) -> GateResult:
    return judge_hearing(hearing, candidate="sha256:0", clock=SystemClock(), inputs={})


GAPS = "name: gap, kind: equalized-odds-gap, by: [sex], maximum: 0.5"
ACCURACY = "name: acc, kind: accuracy, minimum: 0.5"


def test_gaps_equal_those_of_fairlearn() -> None:
    policy = policy_of(GAPS, "name: sel, kind: selection-rate-gap, by: [area], maximum: 0.5")
    hearing = hearing_of(policy, score=planted.by_proxy)
    test, answers = hearing.test, hearing.test_answers.classes
    odds = fairness.check_gap(policy.checks[0], hearing).claims[0].evidence
    selection = fairness.check_gap(policy.checks[1], hearing).claims[0].evidence
    assert odds is not None
    assert selection is not None
    assert odds.estimate == pytest.approx(
        equalized_odds_difference(test.labels, answers, sensitive_features=test.groups["sex"])
    )
    assert selection.estimate == pytest.approx(
        demographic_parity_difference(test.labels, answers, sensitive_features=test.groups["area"])
    )


def with_group(name: str, values: object) -> Callable[[Rows], Rows]:
    return lambda rows: dataclasses.replace(rows, groups={**rows.groups, name: np.resize(np.array(values), len(rows))})


def without_group(rows: Rows) -> Rows:
    return dataclasses.replace(rows, groups={})


def without_positives(rows: Rows) -> Rows:
    return rows.take(rows.labels == 0)


def nearly_without_a_group(rows: Rows) -> Rows:
    is_woman = rows.groups["sex"] == "woman"
    return rows.take(~is_woman | (np.cumsum(is_woman) <= 3))


def nan_for_some(columns: planted.Columns) -> torch.Tensor:
    return torch.where(columns["merit"] > 2, torch.nan, columns["merit"])


def crashing(columns: planted.Columns) -> torch.Tensor:
    raise RuntimeError("no such column")


FAULTS = {
    "the attribute is missing": (GAPS, without_group, None, "attribute-missing"),
    "all are of one group": (GAPS, with_group("sex", ["man"]), None, "single-group"),
    "nobody is positive": (GAPS, without_positives, None, "no-positives"),
    "a group is tiny": (GAPS, nearly_without_a_group, None, "not-estimable"),
    "the model answers NaN": (ACCURACY, None, nan_for_some, "not-finite"),
    "the model crashes": (ACCURACY, None, crashing, "model-crashed"),
    "a slice column is missing": (
        "name: s, kind: accuracy, by: [nobody], minimum: 0.1",
        None,
        None,
        "attribute-missing",
    ),
    "an attacked column is missing": (
        "name: e, kind: evasion, minimum: 0.1, attacks: [fgsm], changes: [{column: nobody, up: 1}]",
        None,
        None,
        "column-missing",
    ),
    "a claimed category is missing": (
        "name: e, kind: evasion, minimum: 0.1, attacks: [fgsm], changes: [{column: sector, to: [nowhere]}]",
        None,
        None,
        "category-missing",
    ),
    "an attack is not available": (
        "name: m, kind: monotone, column: sector, step: 1, maximum: 0.5",
        None,
        None,
        "column-missing",
    ),
    "persons are unknown": (
        'name: o, kind: overlap, "on": subject, maximum: 0.5',
        lambda rows: dataclasses.replace(rows, subjects=None),
        None,
        "subject-missing",
    ),
    "too few members": (
        "name: m, kind: membership, maximum_auc: 0.9, maximum_tpr: 0.9",
        lambda rows: rows.take(np.arange(100)),
        None,
        "too-few-rows",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_evaluated_is_undecided_with_its_reason(case: str) -> None:
    check, change, score, code = FAULTS[case]
    result = judge(hearing_of(policy_of(check), change=change, score=score))
    assert (result.checks[0].verdict, result.checks[0].code) == (Verdict.UNDECIDED, code), result.checks[0].explanation
    assert not result.is_go


def test_another_order_of_classes_is_not_judged() -> None:
    hearing = dataclasses.replace(hearing_of(policy_of(ACCURACY)), classes=("granted", "refused"))
    assert judge(hearing).checks[0].code == "wrong-class-order"


def test_a_model_of_another_dataset_version_is_not_judged() -> None:
    hearing = dataclasses.replace(hearing_of(policy_of(ACCURACY)), dataset_digest="sha256:" + "1" * 64)
    assert judge(hearing).checks[0].code == "stale-dataset"


def test_an_unknown_favourable_class_is_not_judged() -> None:
    assert judge(hearing_of(policy_of(GAPS, favourable="maybe"))).checks[0].code == "no-favourable-class"


def test_white_box_attacks_are_refused_when_the_module_is_another_model() -> None:
    check = "name: e, kind: evasion, minimum: 0.1, attacks: [fgsm], changes: [{column: hours, up: 1}]"
    hearing = hearing_of(policy_of(check, "name: p, kind: parity, maximum: 0.00001"))
    model = dataclasses.replace(hearing.model, load_module=lambda: planted.ScoreModule(planted.by_proxy))
    other = dataclasses.replace(hearing, load_model=lambda: model, _kept={}, _locks={})
    attacked, parity = judge(other).checks
    assert (attacked.verdict, attacked.code) == (Verdict.UNDECIDED, "parity-broken")
    assert parity.verdict is Verdict.FAIL


def test_row_order_and_number_of_checks_at_once_move_nothing() -> None:
    schema, table = tabled(planted.make_rows(1200, seed=1))
    _, train = tabled(planted.make_rows(1200, seed=2))
    policy = policy_of(
        ACCURACY,
        GAPS,
        "name: m, kind: membership, maximum_auc: 0.6, maximum_tpr: 0.1",
        "name: e, kind: evasion, minimum: 0.1, rows: 200, attacks: [pgd], changes: [{column: hours, up: 2, down: 2}]",
    )
    model = planted.judged_of_score(planted.honest, name="honest")
    digests = set()
    for seed, at_once in ((0, 1), (1, 2), (2, 4)):
        order = np.random.default_rng(seed).permutation(table.num_rows)
        hearing = Hearing(
            policy=policy,
            load_model=lambda: model,
            load_test=lambda order=order: rows_of_table(table.take(order), schema=schema),
            load_train=lambda order=order: rows_of_table(train.take(order), schema=schema),
            load_champion=None,
            classes=planted.CLASSES,
            dataset_digest=None,
            seed=0,
        )
        digests.add(
            judge_hearing(hearing, candidate="c", clock=SystemClock(), inputs={}, checks_at_once=at_once).digest
        )
    assert len(digests) == 1


def tabled(rows: Rows) -> tuple[Schema, pa.Table]:
    columns = [
        Column(name=column.name, roles=("feature",), kind=column.kind, categories=column.categories)
        for column in planted.CONTRACT.inputs
    ]
    columns += [
        Column(name="sex", roles=("sensitive",), kind="category", categories=("man", "woman")),
        Column(name="label", roles=("label",), kind="category", categories=planted.CLASSES),
    ]
    schema = Schema(
        name="planted", title="t", source="s", credit="c", licence="l", lawful_basis="b", purposes=("test",),
        subject="s", subject_key=SubjectKey(public="k"), groups=1, splits={"test": (0, 1)}, columns=tuple(columns),
    )  # fmt: skip
    values = {**rows.features, "sex": (rows.groups["sex"] == "woman").astype(np.int64), "label": rows.labels}
    return schema, pa.table(values)


def test_a_missing_sensitive_value_becomes_a_group_and_a_missing_feature_stops() -> None:
    schema, table = tabled(planted.make_rows(30, seed=1))
    holes = pa.array([None, *table["sex"].to_pylist()[1:]], pa.int64())
    rows = rows_of_table(table.set_column(table.column_names.index("sex"), "sex", holes), schema=schema)
    assert (rows.groups["sex"] == MISSING).sum() == 1
    holes = pa.array([None, *table["merit"].to_pylist()[1:]], pa.float32())
    for name, broken in {
        "rows-null": table.set_column(0, "merit", holes),
        "rows-not-finite": table.set_column(0, "merit", pa.array([float("nan")] * 30, pa.float32())),
        "column-missing": table.drop_columns(["merit"]),
        "no-rows": table.slice(0, 0),
    }.items():
        with pytest.raises(NotEvaluableError) as caught:
            rows_of_table(broken, schema=schema)
        assert caught.value.code == name


def test_the_relaxed_model_is_exact_where_one_category_is_chosen() -> None:
    rows = planted.make_rows(50, seed=3)
    changes = (Change(column="hours", up=3, down=3), Change(column="sector", to="any"))
    surface = plan_surface(rows, contract=planted.CONTRACT, changes=changes)
    module = planted.ScoreModule(planted.honest)
    relaxed = RelaxedModel(module, surface, contract=planted.CONTRACT)
    flat = surface.encode()
    flat[:, 1] += 1.0  # one unit of three hours
    flat[:, 2:] = np.eye(4, dtype=np.float32)[2]
    columns = {name: torch.from_numpy(values) for name, values in rows.features.items()}
    expected = module({**columns, "hours": columns["hours"] + 3, "sector": torch.full((50,), 2)})
    assert torch.allclose(relaxed(torch.from_numpy(flat)), expected, atol=1e-4)


def test_any_flat_vector_decodes_to_what_a_person_could_do() -> None:
    rows = planted.make_rows(400, seed=4)
    changes = (Change(column="hours", up=3, down=1), Change(column="sector", to=("shop",)))
    surface = plan_surface(rows, contract=planted.CONTRACT, changes=changes)
    flat = (
        surface.encode()
        + np.random.default_rng(0).normal(0, 3, (400, surface.width)).astype(np.float32) * surface.radius
    )
    found = surface.decode(flat)
    change = found["hours"] - rows.features["hours"]
    assert change.min() == -1
    assert change.max() == 3
    assert (found["hours"] == np.rint(found["hours"])).all()
    assert found["hours"].max() <= 80
    assert ((found["sector"] == rows.features["sector"]) | (found["sector"] == 2)).all()
    assert (found["merit"] == rows.features["merit"]).all()
    assert surface.count_infeasible(found, chosen=np.arange(400)) == 0
    assert surface.count_infeasible({**found, "merit": found["merit"] + 1}, chosen=np.arange(400)) == 400
    unchanged = surface.decode(surface.encode())
    assert all((unchanged[name] == rows.features[name]).all() for name in unchanged)


def test_calibration_sees_a_model_that_is_too_sure() -> None:
    check = "name: c, kind: calibration, maximum: 0.12, bins: 5"
    assert judge(hearing_of(policy_of(check), rows=4000)).checks[0].verdict is Verdict.PASS
    sure = judge(hearing_of(policy_of(check), rows=4000, score=lambda columns: planted.honest(columns) + 2.0))
    assert sure.checks[0].verdict is Verdict.FAIL


def test_losses_of_impossible_answers_stay_finite() -> None:
    losses = quality.log_losses(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1]))
    assert losses[0] == pytest.approx(-np.log(1e-7))


def test_every_kind_of_rule_has_its_function() -> None:
    from typing import get_args

    from mlops.evaluation.policy import AnyRule

    kinds = {kind for rule in get_args(get_args(AnyRule)[0]) for kind in get_args(rule.model_fields["kind"].annotation)}
    assert kinds == set(CHECKS)


def test_an_attack_on_images_moves_every_pixel_within_its_step_and_range() -> None:
    images = np.random.default_rng(1).random((40, 1, 4, 4)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 0.5).astype(np.int64)
    rows = Rows(features={"image": images}, labels=labels, groups={})
    column = Column(name="image", kind="tensor", roles=("feature",), shape=(1, 4, 4), minimum=0.0, maximum=1.0)
    contract = make_contract(
        "pictures", features=(column,), classes=("dark", "light"), dataset=planted.CONTRACT.dataset
    )
    surface = plan_surface(rows, contract=contract, changes=(Change(column="image", up=0.1, down=0.05),))
    assert surface.width == 1 + 16
    unchanged = surface.decode(surface.encode())["image"]
    assert (unchanged == images).all()
    lowest, highest = (surface.decode(side)["image"] for side in surface.row_limits())
    assert np.allclose(lowest, np.maximum(images - 0.05, 0), atol=1e-5)
    assert np.allclose(highest, np.minimum(images + 0.1, 1), atol=1e-5)
    wild = surface.encode() + 9 * surface.radius
    found = surface.decode(wild)
    assert found["image"].shape == images.shape
    assert surface.count_infeasible(found, chosen=np.arange(40)) == 0
    one_pixel = images.copy()
    one_pixel[:7, 0, 3, 3] += 0.2
    assert surface.count_infeasible({"image": one_pixel}, chosen=np.arange(40)) == 7
    mean = planted.ScoreModule(lambda columns: columns["image"].mean((1, 2, 3)))
    relaxed = RelaxedModel(mean, surface, contract=contract)
    assert torch.allclose(
        relaxed(torch.from_numpy(surface.encode())), mean({"image": torch.from_numpy(images)}), atol=1e-6
    )
