"""Comparison with a champion: paired bounds against independent computations, and what they decide."""

import dataclasses
import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from mlops.clock import SystemClock
from mlops.evaluation import paired, planted
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.verdicts import CheckResult, Verdict
from mlops.specs import parse_spec

POLICY = """
version: 1
product: planted
favourable_class: granted
checks:
  - {name: champion, kind: champion, accuracy_margin: 0.02, loss_margin: 0.03, auc_margin: 0.02,
     maximum_negative_flips: 0.05, by: [sex], owner: me, reason: a reason of a sentence}
"""


def compare(new: planted.Score, old: planted.Score | None) -> CheckResult:
    policy = parse_spec(POLICY, Policy, source="policy")
    hearing = planted.open_planted(planted.PLANTED[0], policy=policy, test_rows=3000, train_rows=300)
    model = planted.judged_of_score(new, name="new")
    champion = None if old is None else planted.judged_of_score(old, name="old")
    hearing = dataclasses.replace(
        hearing, load_model=lambda: model, load_champion=None if champion is None else lambda: champion
    )
    return judge_hearing(hearing, candidate="c", clock=SystemClock(), inputs={}).checks[0]


def test_mcnemar_equals_statsmodels() -> None:
    for gained, lost in [(0, 0), (3, 9), (40, 61), (5, 5)]:
        expected = mcnemar([[100, gained], [lost, 50]], exact=True).pvalue
        assert paired.mcnemar_exact(gained, lost) == pytest.approx(min(1.0, expected))


def test_paired_bounds_are_where_the_score_test_turns() -> None:
    found = paired.assess_paired_rates(12, 2, 14 + 22, margin=0.1, alpha=0.025)
    for bound, limit in ((found.lower, 1.959964), (found.upper, -1.959964)):
        assert paired._tango(12, 2, 36, difference=bound) == pytest.approx(limit, abs=1e-6)
    assert found.lower < 10 / 36 < found.upper


def test_paired_rates_keep_their_level_at_the_margin(test_scale: int) -> None:
    repeats = 1500 * test_scale
    rng, shown = np.random.default_rng(4), 0
    draws = rng.multinomial(800, [0.05, 0.07, 0.88], size=repeats)  # gained, lost: truth -0.02
    for gained, lost, _ in draws:
        shown += paired.assess_paired_rates(int(gained), int(lost), 800, margin=0.02, alpha=0.05).p_good <= 0.05
    assert shown / repeats <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats) + 0.005


def test_paired_areas_use_the_pairing() -> None:
    rng = np.random.default_rng(0)
    is_positive = rng.random(400) < 0.4
    old = rng.normal(is_positive.astype(float), 1)
    new = old + rng.normal(0, 0.05, 400)
    found = paired.assess_paired_areas(new, old, is_positive, margin=0.02, alpha=0.05)
    assert found.upper - found.lower < 0.01
    assert found.p_good < 1e-6


def test_the_bootstrap_of_losses_covers_the_truth() -> None:
    rng, misses = np.random.default_rng(1), 0
    for seed in range(60):
        found = paired.assess_paired_mean(rng.exponential(1, 120) - 1.0, margin=0.0, alpha=0.05, seed=seed)
        misses += not found.lower <= 0.0 <= found.upper
    assert misses <= 13  # 10 % expected: 6 of 60


def test_the_same_model_twice_passes_and_a_worse_one_fails() -> None:
    assert compare(planted.honest, planted.honest).verdict is Verdict.PASS
    worse = compare(planted.flipped_for_women, planted.honest)
    assert worse.verdict is Verdict.FAIL
    failed = {judged.claim.name for judged in worse.claims if judged.verdict is Verdict.FAIL}
    assert "right answers lost, woman" in failed
    assert "right answers lost, man" not in failed


def test_without_a_champion_nothing_is_waved_through_unless_the_policy_says_so() -> None:
    assert (compare(planted.honest, None).verdict, compare(planted.honest, None).code) == (
        Verdict.UNDECIDED,
        "no-champion",
    )
