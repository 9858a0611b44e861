"""Bounds and tests against independent implementations, and by simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mlops.evaluation import gaps, means, multiplicity, rates, roc


def table(rate: str, cells: list[tuple[int, int]]) -> gaps.RateTable:
    names = tuple(f"g{index}" for index in range(len(cells)))
    return gaps.RateTable(rate, names, tuple(float(x) for x, _ in cells), tuple(float(n) for _, n in cells))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (500, 1000), (1, 3041)])
def test_exact_bounds_equal_those_of_statsmodels(successes: int, trials: int) -> None:
    lower, upper = rates.clopper_pearson(successes, trials, alpha=0.025)
    expected = proportion_confint(successes, trials, alpha=0.05, method="beta")
    assert (lower, upper) == pytest.approx(expected, abs=1e-12)


def test_no_trials_are_no_rate() -> None:
    for successes, trials in [(0, 0), (3, 2), (-1, 5)]:
        with pytest.raises(ValueError, match="not a rate"):
            rates.clopper_pearson(successes, trials, alpha=0.05)


@pytest.mark.parametrize(("maximum", "trials"), [(0.05, 59), (0.01, 299), (0.001, 2995)])
def test_zero_failures_show_a_rate_from_the_known_number_of_trials_on(maximum: float, trials: int) -> None:
    shown = rates.assess_rate_at_most(0, trials, maximum=maximum, alpha=0.05)
    almost = rates.assess_rate_at_most(0, trials - 1, maximum=maximum, alpha=0.05)
    assert shown.p_good <= 0.05 < almost.p_good
    assert shown.upper <= maximum < almost.upper


@pytest.mark.parametrize("hits", [0, 70, 80, 90, 100])
def test_bounds_and_p_values_say_the_same(hits: int) -> None:
    for threshold in (0.6, 0.7, 0.8, 0.9):
        at_least = rates.assess_rate_at_least(hits, 100, minimum=threshold, alpha=0.05)
        assert (at_least.p_good <= 0.05) == (at_least.lower >= threshold)
        assert (at_least.p_bad <= 0.05) == (at_least.upper <= threshold)
        at_most = rates.assess_rate_at_most(hits, 100, maximum=threshold, alpha=0.05)
        assert (at_most.p_good <= 0.05) == (at_most.upper <= threshold)
        assert (at_most.p_bad <= 0.05) == (at_most.lower >= threshold)


def test_the_planned_rows_decide_and_half_of_them_do_not() -> None:
    more = rates.plan_rows_for_rate(84, 100, threshold=0.8, alpha=0.05)
    assert more is not None
    for factor, is_decided in ((1.0, True), (0.5, False)):
        n = math.ceil((100 + more) * factor)
        lower, _ = rates.clopper_pearson(round(0.84 * n), n, alpha=0.05)
        assert (lower >= 0.8) is is_decided
    assert rates.plan_rows_for_rate(80, 100, threshold=0.8, alpha=0.05) is None


def brute_force_score(p1: float, n1: int, p2: float, n2: int, delta: float) -> float:
    """The score statistic with the restricted maximum likelihood found on a grid."""
    grid = np.linspace(max(delta, 0) + 1e-6, min(1, 1 + delta) - 1e-6, 40_001)
    q2 = grid - delta
    likelihood = (
        p1 * n1 * np.log(grid)
        + (1 - p1) * n1 * np.log(1 - grid)
        + p2 * n2 * np.log(q2.clip(1e-12))
        + (1 - p2) * n2 * np.log((1 - q2).clip(1e-12))
    )
    best = int(likelihood.argmax())
    variance = grid[best] * (1 - grid[best]) / n1 + q2[best] * (1 - q2[best]) / n2
    return (p1 - p2 - delta) / math.sqrt(variance)


@pytest.mark.parametrize("delta", [-0.3, -0.1, 0.05, 0.1, 0.4])
@pytest.mark.parametrize(
    ("x1", "n1", "x2", "n2"), [(30, 100, 20, 80), (3, 30, 1, 50), (0, 30, 2, 50), (50, 60, 5, 400)]
)
def test_the_closed_form_score_equals_a_grid_search(x1: int, n1: int, x2: int, n2: int, delta: float) -> None:
    arguments = [np.array([float(value)]) for value in (x1 / n1, n1, x2 / n2, n2)]
    z, _ = gaps._plain_score(*arguments, difference=delta)
    assert float(z[0]) == pytest.approx(brute_force_score(x1 / n1, n1, x2 / n2, n2, delta), abs=2e-3)


def test_the_skewness_correction_only_makes_the_alarm_rarer() -> None:
    rng = np.random.default_rng(1)
    n1, n2 = rng.integers(5, 500, 300).astype(float), rng.integers(5, 500, 300).astype(float)
    p1, p2 = rng.random(300), rng.random(300)
    plain, _ = gaps._plain_score(p1, n1, p2, n2, difference=0.1)
    corrected = gaps.score_statistic(p1, n1, p2, n2, difference=0.1)
    assert (corrected <= plain + 1e-12).all()
    assert (corrected < plain - 1e-6).any()


SIMULATED = {
    "fair, ten groups of fifty": ([0.3] * 10, 50, 0.05, None),
    "fair, five groups of fifty": ([0.3] * 5, 50, 0.05, None),
    "fair and rare, five groups of fifty": ([0.02] * 5, 50, 0.05, None),
    "exactly at the tolerance, two groups": ([0.3, 0.4], 200, 0.05, None),
    "exactly at the tolerance and rare": ([0.02] * 4 + [0.12], 50, 0.05, None),
    "a gap of 0.20, five groups of 200": ([0.3] * 4 + [0.5], 200, None, 0.40),
}


@pytest.mark.parametrize("case", SIMULATED)
def test_alarms_are_false_at_most_in_one_case_of_twenty_and_gross_gaps_are_found(case: str, test_scale: int) -> None:
    truth, n, most, least = SIMULATED[case]
    repeats = 400 * test_scale
    counts = np.random.default_rng(7).binomial(n, truth, size=(repeats, len(truth)))
    alarms = 0
    for row in counts:
        pairs = gaps._Pairs.of((table("rate", [(int(x), n) for x in row]),), minimum_denominator=5)
        assert pairs is not None
        alarms += pairs.test(0.10)[1] <= 0.05
    slack = 2.6 * math.sqrt(0.05 * 0.95 / repeats)
    if most is not None:
        assert alarms / repeats <= most + slack
    if least is not None:
        assert alarms / repeats >= least


def test_a_gap_at_the_tolerance_passes_at_most_rarely(test_scale: int) -> None:
    repeats = 400 * test_scale
    counts = np.random.default_rng(3).binomial(200, [0.3, 0.4], size=(repeats, 2))
    passed = 0
    for row in counts:
        pairs = gaps._Pairs.of((table("rate", [(int(x), 200) for x in row]),), minimum_denominator=5)
        assert pairs is not None
        passed += pairs.test(0.10)[0] <= 0.05
    assert passed / repeats <= 0.06 + 2.6 * math.sqrt(0.06 * 0.94 / repeats)


def test_bounds_of_a_gap_are_the_tolerances_where_the_tests_turn() -> None:
    found = gaps.assess_gap(
        (table("a", [(60, 200), (90, 220), (30, 90)]), table("b", [(5, 100), (9, 120), (4, 60)])),
        tolerance=0.1,
        alpha=0.05,
        minimum_denominator=10,
    )
    assert found is not None
    assert found.evidence.estimate == pytest.approx(90 / 220 - 60 / 200)
    pairs = gaps._Pairs.of(
        (table("a", [(60, 200), (90, 220), (30, 90)]), table("b", [(5, 100), (9, 120), (4, 60)])),
        minimum_denominator=10,
    )
    assert pairs is not None
    assert pairs.test(found.evidence.upper + 1e-4)[0] <= 0.05 < pairs.test(found.evidence.upper - 1e-4)[0]
    assert found.evidence.lower <= found.evidence.estimate <= found.evidence.upper


def test_small_cells_are_listed_and_empty_ones_ask_for_no_number_of_rows() -> None:
    found = gaps.assess_gap(
        (table("tpr", [(60, 200), (61, 200), (0, 4)]),), tolerance=0.3, alpha=0.05, minimum_denominator=10
    )
    assert found is not None
    assert found.too_small == ("tpr of g2: n=4",)
    assert found.rows_factor is not None
    empty = gaps.assess_gap(
        (table("tpr", [(60, 200), (61, 200), (0, 0)]),), tolerance=0.3, alpha=0.05, minimum_denominator=10
    )
    assert empty is not None
    assert empty.rows_factor is None
    assert (
        gaps.assess_gap((table("tpr", [(6, 20), (0, 4)]),), tolerance=0.3, alpha=0.05, minimum_denominator=10) is None
    )


def test_bounds_of_a_skewed_mean_hold_their_promise(test_scale: int) -> None:
    repeats, misses = 600 * test_scale, np.zeros(2)
    draws = np.random.default_rng(5).exponential(1.0, size=(repeats, 200))
    for row in draws:
        found = means.assess_mean_at_most(row, maximum=1.0, alpha=0.05)
        misses += [found.lower > 1.0, found.upper < 1.0]
        assert (found.p_good <= 0.05) == (found.upper <= 1.0) or abs(found.upper - 1.0) < 0.01
    assert (misses / repeats <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats) + 0.005).all()


def test_a_mean_refuses_what_gives_no_bound() -> None:
    for values in (np.ones(5), np.append(np.ones(100), np.nan)):
        with pytest.raises(ValueError, match="no bound"):
            means.assess_mean_at_most(values, maximum=1.0, alpha=0.05)
    constant = means.assess_mean_at_most(np.full(50, 0.2), maximum=0.3, alpha=0.05)
    assert (constant.p_good, constant.p_bad) == (0.0, 1.0)


def test_the_area_equals_that_of_sklearn_with_ties_and_its_error_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(0.7, 1, 60).round(1), rng.normal(0, 1, 80).round(1)
    area, error = roc.area_with_error(positives, negatives)
    truth = np.repeat([1, 0], [60, 80])
    assert area == pytest.approx(roc_auc_score(truth, np.concatenate([positives, negatives])))
    kernel = np.array([[(a > b) + 0.5 * (a == b) for b in negatives] for a in positives])
    expected = kernel.mean(axis=1).var(ddof=1) / 60 + kernel.mean(axis=0).var(ddof=1) / 80
    assert error == pytest.approx(math.sqrt(expected))


def test_the_area_covers_the_truth(test_scale: int) -> None:
    truth, misses, repeats = float(stats.norm.cdf(1 / math.sqrt(2))), np.zeros(2), 500 * test_scale
    rng = np.random.default_rng(2)
    for _ in range(repeats):
        found = roc.assess_area(
            rng.normal(1, 1, 100), rng.normal(0, 1, 100), threshold=0.5, alpha=0.05, is_minimum=True
        )
        misses += [found.lower > truth, found.upper < truth]
    assert (misses / repeats <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats) + 0.01).all()


def test_a_perfect_ranking_is_not_known_without_error() -> None:
    found = roc.assess_area(np.arange(20.0) + 100, np.arange(20.0), threshold=0.99, alpha=0.05, is_minimum=True)
    assert found.estimate == 1.0
    assert found.lower < 0.99
    assert found.p_good > 0.05


def test_the_threshold_of_an_attack_keeps_its_rate_with_ties() -> None:
    negatives = np.repeat([0.1, 0.9], [50, 50])
    cut = roc.threshold_at(negatives, false_positive_rate=0.1)
    assert (negatives > cut).mean() <= 0.1


def test_holm_equals_statsmodels() -> None:
    rng = np.random.default_rng(9)
    for _ in range(5):
        values = {f"h{index}": float(value) for index, value in enumerate(rng.random(8) ** 4)}
        expected = multipletests(list(values.values()), alpha=0.05, method="holm")[0]
        rejected = multiplicity.reject_by_holm(values, alpha=0.05)
        assert rejected == {name for name, is_in in zip(values, expected, strict=True) if is_in}
    assert multiplicity.reject_by_holm({}, alpha=0.05) == frozenset()


def test_any_order_of_groups_gives_the_same_gap() -> None:
    cells = [(60, 200), (90, 220), (30, 90)]
    found = {
        (gap.evidence.p_good, gap.evidence.p_bad)
        for order in itertools.permutations(cells)
        if (gap := gaps.assess_gap((table("a", list(order)),), tolerance=0.1, alpha=0.05, minimum_denominator=5))
    }
    assert len(found) == 1
