"""The attack with reference models and the lower bound of epsilon: power, validity under the null, bad input."""

import numpy as np
import pytest

from mlops.evaluation import reference_membership as membership
from mlops.evaluation.verdicts import NotEvaluableError


def pool(*, leak: float, references: int = 8, rows: int = 2000, seed: int = 0) -> membership.AuditPool:
    """Rows of unequal difficulty; a model is surer of what it was trained on by `leak` on the logit scale."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(1, 2, rows)
    is_in = rng.random((references + 1, rows)) < 0.5
    logits = difficulty + leak * is_in + rng.normal(0, 0.3, is_in.shape)
    confidences = 1 / (1 + np.exp(-logits))
    return membership.AuditPool(is_in[0], confidences[0], confidences[1:], is_in[1:])


def scores_of(audit: membership.AuditPool) -> np.ndarray:
    return membership.log_ratio_scores(audit.target, audit.references, audit.membership)


def test_the_attack_finds_members_that_the_bare_loss_hides() -> None:
    audit = pool(leak=0.6)
    found = membership.measure_membership(
        scores_of(audit), audit.is_member, maximum_auc=0.6, maximum_tpr=0.03, at=(0.01, 0.001), alpha=0.05
    )
    bare = membership.measure_membership(
        np.log(audit.target), audit.is_member, maximum_auc=0.6, maximum_tpr=0.03, at=(0.01,), alpha=0.05
    )
    assert found.area.estimate > bare.area.estimate + 0.1
    assert found.rates_at[0.01].estimate > 3 * bare.rates_at[0.01].estimate
    assert 0.001 not in found.rates_at  # a thousand strangers cannot measure one in a thousand


def test_without_a_leak_nothing_is_found() -> None:
    audit = pool(leak=0.0)
    found = membership.measure_membership(
        scores_of(audit), audit.is_member, maximum_auc=0.55, maximum_tpr=0.03, at=(0.01,), alpha=0.05
    )
    assert found.area.p_good <= 0.05
    assert abs(found.area.estimate - 0.5) < 0.04


def test_rows_that_no_reference_has_seen_are_scored_too() -> None:
    audit = pool(leak=0.6, references=2)
    assert np.isfinite(scores_of(audit)).all()
    lone = membership.log_ratio_scores(audit.target, audit.references[:1], audit.membership[:1])
    assert np.isfinite(lone).all()


BAD = {
    "no references": (np.zeros((0, 5)), np.zeros((0, 5), dtype=bool), "no-references"),
    "another shape": (np.full((2, 4), 0.5), np.zeros((2, 4), dtype=bool), "wrong-shape"),
    "not probabilities": (np.full((2, 5), 1.5), np.zeros((2, 5), dtype=bool), "not-probabilities"),
    "not finite": (np.full((2, 5), np.nan), np.zeros((2, 5), dtype=bool), "not-probabilities"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_matrices_are_not_evaluable(case: str) -> None:
    references, is_in, code = BAD[case]
    with pytest.raises(NotEvaluableError) as caught:
        membership.log_ratio_scores(np.full(5, 0.5), references, is_in)
    assert caught.value.code == code


def audit_gaussian(shift: float, *, repeats: int, rows: int = 500) -> np.ndarray:
    rng, found = np.random.default_rng(3), []
    for _ in range(repeats):
        is_member = rng.random(rows) < 0.5
        found.append(membership.bound_epsilon(rng.normal(0, 1, rows) + shift * is_member, is_member, alpha=0.05))
    return np.array(found)


def test_epsilon_is_bounded_away_from_zero_only_when_it_is_there(test_scale: int) -> None:
    repeats = 400 * test_scale
    nothing = audit_gaussian(0.0, repeats=repeats)
    assert (nothing > 0).mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / repeats)
    shifted = audit_gaussian(1.0, repeats=40)
    assert np.median(shifted) >= 1.4
    assert (shifted <= membership.gaussian_epsilon(1.0, delta=1e-5)).mean() >= 0.95


@pytest.mark.parametrize("delta", [1e-6, 1e-5, 1e-2])
def test_epsilon_of_a_gaussian_satisfies_its_own_definition(delta: float) -> None:
    from scipy import integrate, stats

    epsilon = membership.gaussian_epsilon(1.0, delta=delta)

    def excess(x: float) -> float:
        return max(0.0, float(stats.norm.pdf(x, 1) - np.exp(epsilon) * stats.norm.pdf(x)))

    start = epsilon + 0.5  # where the densities' ratio reaches exp(epsilon)
    assert integrate.quad(excess, start, start + 12)[0] == pytest.approx(delta, rel=1e-3)
