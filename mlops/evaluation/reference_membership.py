"""Membership inference with the sweep's trials as reference models, and a one-run lower bound of epsilon.

The score of a row is the log-ratio of the target's confidence to the mean confidence of the reference models, trained
with and without the row alike (BASE, Lassila et al. 2025; InfoRMIA, ICLR 2026): continuous, so it ranks at any false
positive rate, and it does not need that membership is paired; it is joined by rank with a likelihood ratio (LiRA,
Carlini et al. 2022) and a difference of log-odds. The rows are the audit pool: each is in the final model and in each
trial with probability 1/2 by seeded hash, which is also what a one-run audit asks for.
Leaves to others: training on the pool (mlops/training), reading confidences of trials, and the policy (checks/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from mlops.evaluation import rates, roc
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError
from mlops.provenance.digest import digest_bytes, digest_json

if TYPE_CHECKING:
    from mlops.evaluation.hearing import Hearing
    from mlops.evaluation.policy import ReferenceMembershipRule

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
FLOOR = 1e-12


def log_ratio_scores(target: Floats, references: Floats, membership: Flags) -> Floats:
    """Score of each row; the higher, the likelier a member of the target.

    Args:
        target: `[N]`, probability that the target gives to the true class.
        references: `[R, N]`, the same of the reference models.
        membership: `[R, N]`, whether a reference was trained on the row.

    Raises:
        NotEvaluableError: No reference models, other shapes, or confidences that are no probabilities.
    """
    if references.ndim != 2 or references.shape != membership.shape or references.shape[1:] != target.shape:
        raise NotEvaluableError("wrong-shape", "confidences and membership of the reference models do not fit the rows")
    if references.shape[0] == 0:
        raise NotEvaluableError("no-references", "there are no trials to serve as reference models")
    for values in (target, references):
        if not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
            raise NotEvaluableError("not-probabilities", "confidences are not probabilities")
    counts_in, counts_out = membership.sum(axis=0), (~membership).sum(axis=0)
    mean_in = (references * membership).sum(axis=0) / np.maximum(counts_in, 1)
    mean_out = (references * ~membership).sum(axis=0) / np.maximum(counts_out, 1)
    # rows that one side has never seen take the other side's mean, shrunk or raised by what is usual between both
    has_both = (counts_in > 0) & (counts_out > 0)
    usual = float(np.median(mean_in[has_both] - mean_out[has_both])) if has_both.any() else 0.0
    mean_in = np.where(counts_in > 0, mean_in, np.clip(mean_out + usual, 0, 1))
    mean_out = np.where(counts_out > 0, mean_out, np.clip(mean_in - usual, 0, 1))
    scores: Floats = np.log(np.maximum(target, FLOOR)) - np.log(np.maximum((mean_in + mean_out) / 2, FLOOR))
    return scores


def log_odds_scores(target: Floats, references: Floats, membership: Flags) -> Floats:
    """How far the target's log-odds lie above the middle of both kinds of reference models; as `log_ratio_scores`."""
    mean_in, mean_out = _usual_log_odds(_log_odds(references), membership)
    scores: Floats = _log_odds(target) - (mean_in + mean_out) / 2
    return scores


def likelihood_ratio_scores(target: Floats, references: Floats, membership: Flags) -> Floats:
    """Log-likelihood ratio of "member" to "stranger", normal on the log-odds scale; arguments as `log_ratio_scores`.

    Means and spread of few models are shrunk towards what is usual over all rows.
    Source: LiRA, Carlini et al., IEEE S&P 2022; with few models a common spread, as in their section VI-C.
    """
    own, others = _log_odds(target), _log_odds(references)
    mean_in, mean_out = _usual_log_odds(others, membership)
    variance = ((others - np.where(membership, mean_in, mean_out)) ** 2).mean(axis=0)
    weight = len(references) / (len(references) + 2 * PRIOR_MODELS)
    variance = np.maximum(weight * variance + (1 - weight) * float(np.median(variance)), FLOOR)
    scores: Floats = ((own - mean_out) ** 2 - (own - mean_in) ** 2) / (2 * variance)
    return scores


def _usual_log_odds(others: Floats, membership: Flags) -> tuple[Floats, Floats]:
    """Mean log-odds of the models with and without each row; what one side lacks is filled by the usual distance."""
    counts_in, counts_out = membership.sum(axis=0), (~membership).sum(axis=0)
    mean_in = (others * membership).sum(axis=0) / np.maximum(counts_in, 1)
    mean_out = (others * ~membership).sum(axis=0) / np.maximum(counts_out, 1)
    has_both = (counts_in > 0) & (counts_out > 0)
    usual = float(np.median(mean_in[has_both] - mean_out[has_both])) if has_both.any() else 0.0
    mean_out = np.where(counts_out > 0, mean_out, mean_in - usual)
    return (mean_in * counts_in + PRIOR_MODELS * (mean_out + usual)) / (counts_in + PRIOR_MODELS), mean_out


PRIOR_MODELS = 2
"""What is usual over all rows counts like so many reference models of a row."""


def _log_odds(values: Floats) -> Floats:
    inside = np.clip(values, FLOOR, 1 - FLOOR)
    found: Floats = np.log(inside) - np.log1p(-inside)
    return found


SCORES = (log_ratio_scores, likelihood_ratio_scores, log_odds_scores)


def membership_scores(target: Floats, references: Floats, membership: Flags) -> Floats:
    """The attack's score: mean rank of three scores, in `[0, 1]`; arguments as `log_ratio_scores`.

    They err on different rows, and ranks need no common scale: joined they find more members than each alone, at every
    false positive rate (`bench_gate.py --only membership`, beside Privacy Meter).

    Raises:
        NotEvaluableError: As `log_ratio_scores`.
    """
    parts = [score(target, references, membership) for score in SCORES]
    scores: Floats = np.mean([stats.rankdata(part) / part.size for part in parts], axis=0)
    return scores


@dataclass(frozen=True)
class MembershipStrength:
    """How well members are found."""

    area: rates.Evidence
    rates_at: dict[float, rates.Evidence]
    """False positive rate to evidence on the true positive rate; rates too small to be measured are absent."""


def measure_membership(
    scores: Floats, is_member: Flags, *, maximum_auc: float, maximum_tpr: float, at: tuple[float, ...], alpha: float
) -> MembershipStrength:
    """AUC and true positive rates with bounds; a rate `f` needs `3 / f` strangers at least."""
    inside, outside = scores[is_member], scores[~is_member]
    if min(inside.size, outside.size) < 50:
        raise NotEvaluableError("too-few-rows", f"{inside.size} members and {outside.size} strangers give no bound")
    area = roc.assess_area(inside, outside, threshold=maximum_auc, alpha=alpha, is_minimum=False)
    found: dict[float, rates.Evidence] = {}
    for rate in at:
        if outside.size < 3 / rate:
            continue
        cut = roc.threshold_at(outside, false_positive_rate=rate)
        hits = int((inside > cut).sum())
        found[rate] = rates.assess_rate_at_most(hits, inside.size, maximum=maximum_tpr, alpha=alpha)
    return MembershipStrength(area, found)


SHARES = (0.1, 0.3)
"""Shares of rows that are guessed, fixed beforehand; alpha is divided among them (Bonferroni)."""


def bound_epsilon(scores: Floats, is_member: Flags, *, alpha: float, delta: float = 1e-5) -> float:
    """Lower bound of epsilon from one training run, valid with probability 1 - alpha.

    The audit guesses membership of the rows with the most extreme scores, and asks which Gaussian trade-off curves make
    so many right guesses too unlikely.
    Source: Mahloujifar, Melis & Chaudhuri, "Auditing f-differential privacy in one run" (2024); guessing with
    abstention: Steinke, Nasr & Jagielski (NeurIPS 2023).

    Args:
        scores: `[N]`, high for members.
        is_member: `[N]`, drawn independently with probability 1/2.
        alpha: Chance that the bound is wrong.
        delta: At which epsilon is stated.
    """
    strengths = []
    for share in SHARES:
        guesses, right = _guess(scores, is_member, share=share)
        strengths.append(_bound_gaussian(guesses, right, total=scores.size, alpha=alpha / len(SHARES)))
    return gaussian_epsilon(max(strengths), delta=delta)


def refute_epsilon(scores: Floats, is_member: Flags, *, epsilon: float, delta: float = 1e-5) -> float:
    """P-value of "the training is (epsilon, delta) private as a Gaussian mechanism": small means the attack refutes it.

    The smallest alpha at which `bound_epsilon` would exceed `epsilon`.
    """
    mu = float(optimize.brentq(lambda value: gaussian_epsilon(value, delta=delta) - epsilon, 0.0, 16.0))
    tails = []
    for share in SHARES:
        guesses, right = _guess(scores, is_member, share=share)
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            is_possible = _is_possible(guesses, right, total=scores.size, mu=mu, tail=middle)
            low, high = (middle, high) if is_possible else (low, middle)
        tails.append(high)
    return min(1.0, len(SHARES) * min(tails))


def _guess(scores: Floats, is_member: Flags, *, share: float) -> tuple[int, int]:
    """How many guesses are made, and how many are right: the top half of them "member", the bottom half "not"."""
    half = max(1, round(share * scores.size / 2))
    order = np.argsort(scores, kind="stable")
    right = int((~is_member[order[:half]]).sum() + is_member[order[-half:]].sum())
    return 2 * half, right


def _bound_gaussian(guesses: int, right: int, *, total: int, alpha: float) -> float:
    """Largest mu of a Gaussian trade-off curve that so many right guesses refute at alpha; 0 when none is refuted."""
    low, high = 0.0, 16.0
    if _is_possible(guesses, right, total=total, mu=low, tail=alpha):
        return 0.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _is_possible(guesses, right, total=total, mu=middle, tail=alpha) else (middle, high)
        )
    return low


def _is_possible(guesses: int, right: int, *, total: int, mu: float, tail: float) -> bool:
    """Whether `right` or more right guesses can have chance `tail` under the curve (algorithm 3 of Mahloujifar et al.).

    `r` and `h` are the masses of right and wrong guesses; walking down from the observed number, each step needs at
    least the wrong mass that the curve asks for, and all must fit into the share of rows that is guessed at all.
    """
    r, h = tail * right / total, tail * (guesses - right) / total
    for count in range(right - 1, -1, -1):
        needed = max(h, float(special.ndtr(special.ndtri(r) - mu)) if 0.0 < r < 1.0 else r)
        r += count / (guesses - count) * (needed - h)
        h = needed
        if r + h > guesses / total:
            return False
    return True


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon at delta of mu-Gaussian privacy.

    Source: Dong, Roth & Su, Gaussian differential privacy (JRSS B 84, 2022), corollary 2.13.
    """
    if mu <= 0.0:
        return 0.0

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(-epsilon / mu + mu / 2)
        second = math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)
        return float(first - second) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + 12 * mu + 1))


@dataclass(frozen=True)
class AuditPool:
    """What the sweep leaves for the audit: N pool rows, the final model and R trials."""

    is_member: Flags
    """`[N]`, whether the final model was trained on the row."""
    target: Floats
    """`[N]`, the final model's probability of the true class."""
    references: Floats
    """`[R, N]`, the same of the trials."""
    membership: Flags
    """`[R, N]`, whether a trial was trained on the row."""
    accountant: dict[str, Any] | None = None
    """What a private training states: `epsilon`, `delta`, `accountant`; None for ordinary training."""

    @property
    def digest(self) -> str:
        """`sha256:…` of everything that the audit rests on."""
        parts = (self.is_member, self.target, self.references, self.membership)
        return digest_json([digest_bytes(np.ascontiguousarray(part).tobytes()) for part in parts] + [self.accountant])


def check_reference_membership(rule: ReferenceMembershipRule, hearing: Hearing) -> Findings:
    """AUC, true positive rate at 1 % and 0.1 % false positives, and the one-run lower bound of epsilon.

    Raises:
        NotEvaluableError: The sweep left no audit pool.
    """
    pool = hearing.audit
    if pool is None:
        raise NotEvaluableError("no-references", "the sweep left no audit pool: train with one to get this attack")
    alpha = hearing.policy.alpha
    scores = membership_scores(pool.target, pool.references, pool.membership)
    strength = measure_membership(
        scores,
        pool.is_member,
        maximum_auc=rule.maximum_auc,
        maximum_tpr=rule.maximum_tpr,
        at=rule.at_fpr,
        alpha=alpha,
    )
    n = int(pool.is_member.sum())
    claims = [Claim("AUC", "at most", rule.maximum_auc, n=n, evidence=strength.area)]
    claims += [
        _claim_rate(rate, strength.rates_at.get(rate), pool=pool, maximum=rule.maximum_tpr) for rate in rule.at_fpr
    ]
    if rule.maximum_epsilon is not None:
        claims.append(_claim_epsilon(scores, pool, maximum=rule.maximum_epsilon, delta=rule.delta, alpha=alpha))
    details = {
        "attack_roc": {"sweep trials": roc.curve(scores[pool.is_member], scores[~pool.is_member])},
        "epsilon_lower_bound": bound_epsilon(scores, pool.is_member, alpha=alpha, delta=rule.delta),
        "epsilon_accountant": pool.accountant,
        "reference_models": int(pool.references.shape[0]),
    }
    return Findings(tuple(claims), details)


def _claim_rate(rate: float, evidence: rates.Evidence | None, *, pool: AuditPool, maximum: float) -> Claim:
    name, n = f"true positives at {rate:.1%} false positives", int(pool.is_member.sum())
    if evidence is not None:
        return Claim(name, "at most", maximum, n=n, evidence=evidence)
    strangers, needed = int((~pool.is_member).sum()), math.ceil(3 / rate)
    text = f"{strangers:,} strangers cannot measure a false positive rate of {rate:.1%}; it takes {needed:,}"
    return Claim(
        name,
        "at most",
        maximum,
        n=n,
        evidence=None,
        code="too-few-rows",
        text=text,
        rows_needed=2 * (needed - strangers),
    )


NO_UPPER_BOUND = 1e6
"""Stands for "nothing bounds epsilon from above": ordinary training gives no guarantee."""


def _claim_epsilon(scores: Floats, pool: AuditPool, *, maximum: float, delta: float, alpha: float) -> Claim:
    """The attack refutes the limit from below; only a private training's accountant can show it from above."""
    accountant = pool.accountant or {}
    vouches = float(accountant.get("delta", 1.0)) <= delta
    upper = float(accountant["epsilon"]) if vouches and "epsilon" in accountant else NO_UPPER_BOUND
    lower = bound_epsilon(scores, pool.is_member, alpha=alpha, delta=delta)
    evidence = rates.Evidence(
        estimate=lower,
        lower=lower,
        upper=upper,
        p_good=0.0 if upper <= maximum else 1.0,
        p_bad=refute_epsilon(scores, pool.is_member, epsilon=maximum, delta=delta),
    )
    text = (
        f"the accountant ({accountant['accountant']}) vouches for {upper:.3g}"
        if upper < NO_UPPER_BOUND
        else (f"no private training vouches for an upper bound at delta {delta:g}")
    )
    if lower > upper:
        text = f"{text}, but the attack shows at least {lower:.3g}: the training is not what it says"
    return Claim("epsilon", "at most", maximum, n=int(pool.is_member.size), evidence=evidence, text=text)
