"""The attack with reference models and the lower bound of epsilon: power, validity under the null, bad input."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from mlops.evaluation import audit_evidence, roc
from mlops.evaluation import reference_membership as membership
from mlops.evaluation.decisions import decide_claims
from mlops.evaluation.policy import ReferenceMembershipRule
from mlops.evaluation.verdicts import NotEvaluableError, Verdict
from mlops.places import Places
from mlops.specs import parse_spec
from mlops.training.audit_pool import save_audit


def pool(*, leak: float, references: int = 8, rows: int = 2000, seed: int = 0) -> membership.AuditPool:
    """Rows of unequal difficulty; a model is surer of what it was trained on by `leak` on the logit scale."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(1, 2, rows)
    is_in = rng.random((references + 1, rows)) < 0.5
    logits = difficulty + leak * is_in + rng.normal(0, 0.3, is_in.shape)
    confidences = 1 / (1 + np.exp(-logits))
    return membership.AuditPool(is_in[0], confidences[0], confidences[1:], is_in[1:])


def scores_of(audit: membership.AuditPool) -> np.ndarray:
    return membership.membership_scores(audit.target, audit.references, audit.membership)


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


def test_members_of_uneven_rows_are_found_by_the_likelihood_ratio() -> None:
    audit = pool(leak=0.6)
    reverse = dataclasses.replace(audit, membership=~audit.membership)
    for score in membership.SCORES:
        inside = score(audit.target, audit.references, audit.membership)
        assert roc.area_with_error(inside[audit.is_member], inside[~audit.is_member])[0] > 0.7
    turned = membership.likelihood_ratio_scores(reverse.target, reverse.references, reverse.membership)
    assert roc.area_with_error(turned[audit.is_member], turned[~audit.is_member])[0] < 0.3


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
    lone = membership.membership_scores(audit.target, audit.references[:1], audit.membership[:1])
    assert np.isfinite(lone).all()


def test_the_p_value_of_a_limit_of_epsilon_is_where_the_bound_meets_it() -> None:
    audit = pool(leak=0.6)
    bound = membership.bound_epsilon(scores_of(audit), audit.is_member, alpha=0.05)
    below, above = (
        membership.refute_epsilon(scores_of(audit), audit.is_member, epsilon=bound * by) for by in (0.99, 1.01)
    )
    assert 0.04 < below <= 0.05 <= above < 0.06


ACCOUNTANTS = {
    "nobody vouches": (0.0, 8.0, None, Verdict.UNDECIDED),
    "the accountant vouches for less": (0.0, 8.0, {"epsilon": 3.0, "delta": 1e-5, "accountant": "prv"}, Verdict.PASS),
    "the accountant vouches for more": (
        0.0,
        8.0,
        {"epsilon": 9.0, "delta": 1e-5, "accountant": "prv"},
        Verdict.UNDECIDED,
    ),
    "at a larger delta": (0.0, 8.0, {"epsilon": 3.0, "delta": 1e-2, "accountant": "prv"}, Verdict.UNDECIDED),
    "the attack shows more": (2.0, 1.0, {"epsilon": 0.5, "delta": 1e-5, "accountant": "prv"}, Verdict.FAIL),
}


@pytest.mark.parametrize("case", ACCOUNTANTS)
def test_epsilon_passes_by_the_accountant_only_and_fails_by_the_attack(case: str) -> None:
    leak, maximum, accountant, expected = ACCOUNTANTS[case]
    audit = dataclasses.replace(pool(leak=leak), accountant=accountant)
    rule = parse_spec(
        "name: m, kind: reference-membership, owner: me, reason: a reason of a sentence, maximum_auc: 1, "
        f"maximum_tpr: 1, at_fpr: [0.001], maximum_epsilon: {maximum}".join("{}"),
        ReferenceMembershipRule,
        source="rule",
    )
    hearing = SimpleNamespace(audit=audit, policy=SimpleNamespace(alpha=0.05))
    found = membership.check_reference_membership(rule, hearing)
    judged = {item.claim.name: item for item in decide_claims({"m": found}, blocking=frozenset(), alpha=0.05)["m"]}
    assert judged["epsilon"].verdict is expected
    assert judged["true positives at 0.1% false positives"].claim.code == "too-few-rows"


def test_the_sweeps_files_become_target_and_references_and_the_left_out_rows_no_members(tmp_path: Path) -> None:
    places, rows = Places(tmp_path), np.array([1, 4, 7])
    is_in = {0: [True, False, True], 3: [False, True, True]}
    for trial, members in is_in.items():
        folder = places.checkpoints / "s1" / f"{trial}"
        save_audit(folder, pool=rows, members=np.array(members), scores=np.float32([trial, 0, 1]))
    candidate = SimpleNamespace(folder=tmp_path)
    (tmp_path / "params.json").write_text('{"params": {}, "sweep": "s1", "trial": 3, "seed": 1}')
    audit = audit_evidence.load_audit(places, candidate)
    assert audit is not None
    assert audit.is_member.tolist() == is_in[3]
    assert audit.membership.tolist() == [is_in[0]]
    assert audit.target == pytest.approx(1 / (1 + np.exp(-np.array([3.0, 0.0, 1.0]))))
    kept = audit_evidence.trained_rows(pa.table({"n": np.arange(9)}), places=places, candidate=candidate)
    assert kept["n"].to_pylist() == [0, 2, 3, 4, 5, 6, 7, 8]
    (tmp_path / "params.json").write_text('{"params": {}, "sweep": "other", "trial": 3, "seed": 1}')
    assert audit_evidence.load_audit(places, candidate) is None


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
        membership.membership_scores(np.full(5, 0.5), references, is_in)
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
