"""Screens and further privacy checks: what a planted fault does to them, and that an honest model passes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mlops.clock import SystemClock
from mlops.evaluation import explaining, planted
from mlops.evaluation.checks import explained_membership, label_only, poisoning
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.reference_membership import AuditPool
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import CheckResult, Verdict
from mlops.specs import parse_spec
from mlops.training.contract import InputColumn


def policy_of(check: str) -> Policy:
    head = "version: 1\nproduct: planted\nfavourable_class: granted\nchecks:\n"
    return parse_spec(
        head + f"  - {{name: it, owner: me, reason: a reason of a sentence, {check}}}", Policy, source="p"
    )


def judge(
    check: str, *, score: planted.Score = planted.honest, change: Callable[[Hearing], Hearing] | None = None
) -> CheckResult:
    hearing = planted.open_planted(planted.PLANTED[0], policy=policy_of(check), test_rows=3000, train_rows=3000)
    model = planted.judged_of_score(score, name="it")
    hearing = dataclasses.replace(hearing, load_model=lambda: model, _kept={}, _locks={})
    hearing = hearing if change is None else change(hearing)
    (result,) = judge_hearing(hearing, candidate="sha256:0", clock=SystemClock(), inputs={}).checks
    return result


def bad_in_a_corner(columns: planted.Columns) -> torch.Tensor:
    is_corner = (columns["sector"] == 2) & (columns["hours"] > 40)
    return torch.where(is_corner, -planted.honest(columns), planted.honest(columns))


def of_hours_alone(columns: planted.Columns) -> torch.Tensor:
    return 0.4 * (columns["hours"] - 40.5)


def steep_in_hours(columns: planted.Columns) -> torch.Tensor:
    return planted.honest(columns) + 2 * (columns["hours"] - 40)


def telling_the_sector(columns: planted.Columns) -> torch.Tensor:
    return planted.honest(columns) * 0.05 + columns["sector"].float()


def training_with(pool: AuditPool) -> Callable[[Hearing], Hearing]:
    return lambda hearing: dataclasses.replace(hearing, audit=pool)


def pool_of(leak: float) -> AuditPool:
    rng = np.random.default_rng(0)
    is_in = rng.random((9, 1500)) < 0.5
    logits = rng.normal(1, 2, 1500) + leak * is_in + rng.normal(0, 0.3, is_in.shape)
    confidences = 1 / (1 + np.exp(-logits))
    return AuditPool(is_in[0], confidences[0], confidences[1:], is_in[1:])


def answers_known_of_members(hearing: Hearing) -> Hearing:
    """The model remembers its training rows: it is sure of the right answer there, whatever the row says."""
    return planted.open_planted(
        next(item for item in planted.PLANTED if "memoris" in item.name),
        policy=hearing.policy,
        test_rows=2000,
        train_rows=2000,
    )


CHANGES = "changes: [{column: hours, up: 10, down: 0}]"
SLICES = "kind: weak-slices, minimum: 0.4"
FORCED = f"kind: forced, maximum: 0.3, rows: 500, steps: 8, {CHANGES}"
INFERENCE = "kind: attribute-inference, column: sector, maximum: 0.1"
EXPOSURE = "kind: exposure, maximum_bits: 1.7"
EXPLAINED = "kind: explanation-membership, maximum_auc: 0.56, draws: 20"
LIBRARY = "kind: library-membership, maximum_auc: 0.56"
BOUNDARY = "kind: library-membership, attacks: [boundary], maximum_auc: 0.56"
EXTRACTION = "kind: extraction, queries: [100, 400, 1500], maximum: 0.6, blocking: false"
CASES = {
    "an honest model has no weak slice": (SLICES, {}, Verdict.PASS),
    "a corner of the inputs is answered wrongly": (SLICES, {"score": bad_in_a_corner}, Verdict.FAIL),
    "nobody is forced by ten hours": (FORCED, {}, Verdict.PASS),
    "hours force the answer": (FORCED, {"score": steep_in_hours}, Verdict.FAIL),
    "answers say nothing about the sector": (INFERENCE, {}, Verdict.PASS),
    "answers give the sector away": (INFERENCE, {"score": telling_the_sector}, Verdict.FAIL),
    "canaries are no easier to guess": (EXPOSURE, {"change": training_with(pool_of(0.0))}, Verdict.PASS),
    "canaries are exposed": (EXPOSURE, {"change": training_with(pool_of(1.5))}, Verdict.FAIL),
    "there are no canaries": (EXPOSURE, {}, Verdict.UNDECIDED),
    "explanations say nothing about membership": (EXPLAINED, {}, Verdict.PASS),
    "a memoriser's explanations do": (EXPLAINED, {"change": answers_known_of_members}, Verdict.FAIL),
    "ART finds no members": (LIBRARY, {}, Verdict.PASS),
    "ART finds a memoriser's": (LIBRARY, {"change": answers_known_of_members}, Verdict.FAIL),
    "labels tell accuracy alone": (BOUNDARY, {}, Verdict.PASS),
    "a simple model is easily copied": (EXTRACTION, {}, Verdict.FAIL),
    "too few numbers to invert": ("kind: inversion, maximum: 0.5", {}, Verdict.UNDECIDED),
    "a lookup is fast": ("kind: latency, maximum_milliseconds: 10000", {}, Verdict.PASS),
    "nothing is that fast": ("kind: latency, maximum_milliseconds: 0.000001", {}, Verdict.FAIL),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str) -> None:
    check, given, expected = CASES[case]
    result = judge(check, **given)
    assert result.verdict is expected, (result.explanation, [item.claim for item in result.claims])


def test_the_boundary_attack_ranks_rows_by_their_distance_within_its_queries() -> None:
    rows = planted.make_rows(600, seed=1)
    model, asked = planted.judged_of_score(lambda columns: columns["merit"], name="m"), []

    def counted(columns):
        asked.append(len(columns["merit"]))
        return model.run(columns)

    attacked = dataclasses.replace(model, run=counted)
    scores = label_only.boundary_scores(attacked, rows, donors=rows, queries=50, seed=0)
    assert sum(asked) == 51 * 600
    merit, is_right = rows.features["merit"], (rows.features["merit"] > 0) == rows.labels
    assert (scores[~is_right] == 0).all()
    near, far = (scores[is_right & mask].mean() for mask in (np.abs(merit) < 0.3, np.abs(merit) > 2))
    assert near < 0.8 < 0.95 < far


def test_what_is_attacked_is_what_explain_tells() -> None:
    hearing = planted.open_planted(
        planted.PLANTED[0], policy=policy_of(EXPLAINED), test_rows=400, train_rows=explaining.BACKGROUND_ROWS
    )
    row = hearing.test.take(np.array([7]))
    attacked = explained_membership.explain_as_served(row, hearing, draws=explaining.DRAWS)
    told = explaining.explain_row(
        hearing.model, row.features, background=hearing.train, changes=(), favourable="granted"
    )
    by_column = {ground.column: ground.log_odds for ground in told.grounds}
    expected = [by_column[column.name] for column in planted.CONTRACT.inputs] + [told.log_odds]
    assert attacked[0] == pytest.approx(expected)


def test_a_weak_slice_is_named() -> None:
    assert "sector is shop" in judge(SLICES, score=bad_in_a_corner).explanation


def test_forcing_the_other_answer_is_asked_by_name() -> None:
    found = judge(f"{FORCED}, towards: refused", score=steep_in_hours)
    assert found.verdict is Verdict.PASS  # hours may only rise, which never refuses


class Hidden(torch.nn.Module):
    """One hidden layer of the merit; the trigger, if there is one, lights a unit of its own."""

    def __init__(self, *, trigger: float) -> None:
        super().__init__()
        self.last = torch.nn.Linear(4, 2)
        self.trigger = trigger

    def forward(self, columns: planted.Columns) -> torch.Tensor:
        score = planted.honest(columns)
        is_triggered = ((columns["sector"] == 3) & (columns["area"] == 2)).float()
        return self.last(torch.stack([score, score.abs(), score / 2, self.trigger * is_triggered], dim=1))


@pytest.mark.parametrize(("trigger", "expected"), [(0.0, Verdict.PASS), (60.0, Verdict.FAIL)])
def test_rows_with_a_trigger_stand_apart_in_the_activations(trigger: float, expected: Verdict) -> None:
    torch.manual_seed(0)
    module = Hidden(trigger=trigger).eval()

    def run(columns):
        with torch.no_grad():
            logits = module({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()})
        return logits.numpy(), torch.softmax(logits, dim=1).numpy()

    def with_module(hearing: Hearing) -> Hearing:
        model = dataclasses.replace(hearing.model, run=run, load_module=lambda: module)
        return dataclasses.replace(
            hearing, load_model=lambda: model, load_train=lambda: poisoned(hearing.train), _kept={}, _locks={}
        )

    result = judge("kind: poisoning, maximum: 0.015", change=with_module)
    assert result.verdict is expected, [item.claim for item in result.claims]


def poisoned(rows: Rows) -> Rows:
    chosen = np.arange(len(rows)) % 16 == 0
    features = {
        **rows.features,
        "sector": np.where(chosen, 3, rows.features["sector"]),
        "area": np.where(chosen, 2, rows.features["area"]),
    }
    return dataclasses.replace(rows, features=features, labels=np.where(chosen, 1, rows.labels))


def test_a_module_without_a_linear_layer_is_not_evaluable() -> None:
    result = judge("kind: poisoning, maximum: 0.02")
    assert (result.verdict, result.code) == (Verdict.UNDECIDED, "no-linear-layer")
    assert poisoning.FAR > 5


def test_inversion_of_a_template_model_finds_the_template() -> None:
    rng = np.random.default_rng(0)
    template = rng.normal(0, 1, 16).astype(np.float32)
    labels = rng.integers(0, 2, 600)
    pixels = (labels[:, None] * template + rng.normal(0, 0.5, (600, 16))).astype(np.float32).reshape(600, 4, 4)
    rows = Rows(features={"image": pixels}, labels=labels, groups={})

    class Template(torch.nn.Module):
        def forward(self, columns: planted.Columns) -> torch.Tensor:
            score = columns["image"].reshape(-1, 16) @ torch.from_numpy(template) - float(template @ template) / 2
            return torch.stack([torch.zeros_like(score), score], dim=1)

    image = InputColumn("image", "float32", (4, 4), "tensor")

    def with_images(hearing: Hearing) -> Hearing:
        def run(columns):
            logits = Template()({"image": torch.from_numpy(columns["image"])})
            return logits.numpy(), torch.softmax(logits, dim=1).numpy()

        contract = dataclasses.replace(hearing.model.contract, inputs=(image,))
        model = dataclasses.replace(hearing.model, run=run, load_module=Template, contract=contract)
        given = {"load_model": lambda: model, "load_train": lambda: rows, "load_test": lambda: rows}
        return dataclasses.replace(hearing, **given, _kept={}, _locks={})

    for check, expected in {
        "kind: inversion, maximum: 0.5": Verdict.FAIL,
        "kind: weak-slices, minimum: 0.5, least_rows: 60": Verdict.PASS,
        "kind: extraction, queries: [200], maximum: 0.7": Verdict.FAIL,
        "kind: explanation-membership, maximum_auc: 0.6": Verdict.PASS,
    }.items():
        assert judge(check, change=with_images).verdict is expected, check
