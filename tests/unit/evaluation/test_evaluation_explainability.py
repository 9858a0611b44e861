"""On what answers rest: attributions that add up, proxies and chance that are found, and what must hold by reason."""

import dataclasses

import numpy as np
import pytest
import torch

from mlops.clock import SystemClock
from mlops.evaluation import attributions, planted
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.twins import Twin
from mlops.evaluation.verdicts import CheckResult, GateResult, Verdict
from mlops.specs import parse_spec

HEAD = "version: 1\nproduct: planted\nfavourable_class: granted\nchecks:\n"
TAIL = ", owner: me, reason: a reason of a sentence}\n"


def judge(rule: str, *, score: planted.Score = planted.honest, twins: tuple[Twin, ...] = ()) -> CheckResult:
    policy = parse_spec(f"{HEAD}  - {{name: it, {rule}{TAIL}", Policy, source="policy")
    hearing = planted.open_planted(planted.PLANTED[0], policy=policy, test_rows=1500, train_rows=800)
    model = planted.judged_of_score(score, name="m")
    hearing = dataclasses.replace(hearing, load_model=lambda: model, twins=twins)
    result = judge_hearing(hearing, candidate="sha256:c", clock=SystemClock(), inputs={})
    assert isinstance(result, GateResult)
    return result.checks[0]


def twin(score: planted.Score, *, distance: float = 0.001) -> Twin:
    return Twin(1, distance, "sha256:t", lambda: planted.ScoreModule(score).eval())


def shifted(columns: planted.Columns) -> torch.Tensor:
    return planted.honest(columns) + 1.0


def by_hours_only(columns: planted.Columns) -> torch.Tensor:
    return 0.3 * (columns["hours"] - 40)


def test_shapley_values_of_an_additive_model_are_its_terms() -> None:
    """Against the definition: the term of the row minus the mean term of the rows that it is compared with."""
    rows, background = planted.make_rows(40, seed=1), planted.make_rows(4000, seed=2)
    found = attributions.attribute_module(
        planted.ScoreModule(planted.honest), rows.features, background=background.features,
        contract=planted.CONTRACT, class_=1, seed=3, draws=400,
    )  # fmt: skip
    assert found.completeness_error.max() < 1e-5
    merit = 2 * (rows.features["merit"] - background.features["merit"].mean())
    hours = 0.05 * (rows.features["hours"] - background.features["hours"].mean())
    assert np.abs(found.values[:, 0] - merit).max() < 0.8
    assert np.abs(found.values[:, 1] - hours).max() < 0.1
    assert np.abs(found.values[:, 3]).max() < 1e-6


def test_integrated_gradients_of_tensors_add_up() -> None:
    contract = dataclasses.replace(
        planted.CONTRACT, inputs=(dataclasses.replace(planted.CONTRACT.inputs[0], shape=(2, 3), kind="tensor"),)
    )

    class Bent(torch.nn.Module):
        def forward(self, columns: planted.Columns) -> torch.Tensor:
            flat = columns["merit"].flatten(1)
            return torch.stack([torch.zeros(len(flat)), (flat**2).sum(1)], dim=1)

    pixels = np.random.default_rng(0).normal(0, 1, (5, 2, 3)).astype(np.float32)
    found = attributions.attribute_tensors(Bent(), {"merit": pixels}, contract=contract, class_=1)
    assert found.inputs[-1] == "merit[5]"
    assert found.values == pytest.approx(pixels.reshape(5, 6).astype(float) ** 2, abs=1e-3)
    assert found.completeness_error.max() < 1e-2


PROXY = "kind: attribution, proxies: [area], maximum_share: 0.1"
STEADY = "kind: attribution, maximum_seed_change: 0.2, draws: 64"
TWINS = "kind: attribution, maximum_twin_change: 0.2"
ARBITRARY = "kind: arbitrary-decisions, maximum: 0.05, objective_within: 0.01"
SWAP = "kind: invariance, column: sex, maximum: 0.02, swaps: {area: {north: south, south: north}}"
CLEAR = "kind: functionality, given: {merit: 6, hours: 60}, answer: granted, maximum: 0.01"
FORWARD = "kind: direction, column: sector, worse: field, better: office, maximum: 0.01"
CASES = {
    "an honest model does not rest on the area": (PROXY, planted.honest, (), Verdict.PASS, ""),
    "a proxy is found": (PROXY, planted.by_proxy, (), Verdict.FAIL, "shown-bad"),
    "an explanation that other seeds give too": (STEADY, planted.honest, (), Verdict.PASS, ""),
    "a twin that says the same": (TWINS, planted.honest, (twin(shifted),), Verdict.PASS, ""),
    "a twin with other reasons": (TWINS, planted.honest, (twin(by_hours_only),), Verdict.FAIL, "shown-bad"),
    "no twin is known": (TWINS, planted.honest, (), Verdict.UNDECIDED, "no-twins"),
    "a twin too far away": (ARBITRARY, planted.honest, (twin(shifted, distance=0.5),), Verdict.UNDECIDED, "no-twins"),
    "a twin that decides alike": (ARBITRARY, planted.honest, (twin(planted.honest),), Verdict.PASS, ""),
    "a twin that decides otherwise": (ARBITRARY, planted.honest, (twin(by_hours_only),), Verdict.FAIL, "shown-bad"),
    "an answer that turns with what goes with sex": (SWAP, planted.by_proxy, (), Verdict.FAIL, "shown-bad"),
    "an answer that does not": (SWAP, planted.honest, (), Verdict.PASS, ""),
    "a clear case": (CLEAR, planted.honest, (), Verdict.PASS, ""),
    "a clear case that is refused": (CLEAR, lambda columns: -planted.honest(columns), (), Verdict.FAIL, "shown-bad"),
    "a better sector helps": (FORWARD, planted.honest, (), Verdict.PASS, ""),
    "a better sector hurts": (FORWARD, lambda columns: -planted.honest(columns), (), Verdict.FAIL, "shown-bad"),
    "an unknown proxy": (PROXY.replace("area", "shoe"), planted.honest, (), Verdict.UNDECIDED, "column-missing"),
    "no such category": (FORWARD.replace("office", "moon"), planted.honest, (), Verdict.UNDECIDED, "category-missing"),
    "a number out of range": (CLEAR.replace("60", "600"), planted.honest, (), Verdict.UNDECIDED, "value-wrong"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_case_gets_its_verdict(case: str) -> None:
    rule, score, twins, verdict, code = CASES[case]
    found = judge(rule, score=score, twins=twins)
    assert (found.verdict, found.code) == (verdict, code), found.explanation
