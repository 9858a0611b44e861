"""The gate's self-test: every planted defect is blocked for the right reason, and the honest model passes."""

import pytest

from mlops.clock import SystemClock
from mlops.evaluation.planted import PLANTED, Planted
from mlops.evaluation.self_test import run_self_test, run_stability_test


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_planted_defects_are_blocked_for_the_right_reason(planted: Planted) -> None:
    (line,) = run_self_test(SystemClock(), planted=(planted,))
    assert line.is_right, line.said


def test_an_honest_model_is_not_refused_by_chance(test_scale: int) -> None:
    """Over other seeds no check of the honest model is ever shown to be bad."""
    for seed in range(1, 1 + 3 * test_scale):
        (line,) = run_self_test(SystemClock(), planted=PLANTED[:1], seed=seed)
        assert not [check.name for check in line.result.checks if check.verdict.value == "FAIL"], seed


def test_nothing_that_must_not_matter_moves_a_digit() -> None:
    assert [line.changed for line in run_stability_test(SystemClock()) if not line.is_right] == []
