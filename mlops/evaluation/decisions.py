"""From evidence to verdicts, purely: Holm over the blocking family for FAIL, intersection–union for PASS.

A claim PASSes when its own test shows the good side at alpha; no correction is needed, since the gate passes only if
every claim does (Berger, Technometrics 24, 1982). It FAILs when Holm's procedure over all claims of all blocking checks
shows the bad side, so that a flawless candidate is refused by chance at most with probability alpha. Advisory checks
are a family of their own. Everything else is UNDECIDED. Leaves to others: the evidence (checks/).
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops.evaluation.multiplicity import reject_by_holm
from mlops.evaluation.verdicts import TOO_SMALL_CODES, Claim, Findings, JudgedClaim, Verdict


def decide_claims(
    findings: Mapping[str, Findings], *, blocking: frozenset[str], alpha: float
) -> dict[str, tuple[JudgedClaim, ...]]:
    """Verdicts of all claims of all checks.

    Args:
        findings: Check name to what it measured.
        blocking: Names of the blocking checks.
        alpha: Error rate of each PASS, and of any FAIL within each family.
    """
    failed = _failed(findings, names=blocking, alpha=alpha)
    failed |= _failed(findings, names=frozenset(findings) - blocking, alpha=alpha)
    return {
        check: tuple(
            JudgedClaim(claim, _verdict(claim, has_failed=_key(check, position) in failed, alpha=alpha))
            for position, claim in enumerate(found.claims)
        )
        for check, found in findings.items()
    }


def _failed(findings: Mapping[str, Findings], *, names: frozenset[str], alpha: float) -> frozenset[str]:
    p_values = {
        _key(check, position): claim.evidence.p_bad
        for check, found in findings.items()
        if check in names
        for position, claim in enumerate(found.claims)
        if claim.evidence is not None
    }
    return reject_by_holm(p_values, alpha=alpha)


def _key(check: str, position: int) -> str:
    return f"{check}\n{position:06d}"


def _verdict(claim: Claim, *, has_failed: bool, alpha: float) -> Verdict:
    if claim.evidence is None:
        return Verdict.UNDECIDED
    if has_failed:
        return Verdict.FAIL
    if claim.evidence.p_good <= alpha and not claim.code:
        return Verdict.PASS
    return Verdict.UNDECIDED


def combine_verdicts(claims: tuple[JudgedClaim, ...]) -> Verdict:
    """A check passes if it has claims and all pass; fails if one fails; else it is undecided."""
    verdicts = {judged.verdict for judged in claims}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.UNDECIDED


def explain_verdict(claims: tuple[JudgedClaim, ...], verdict: Verdict) -> tuple[str, str]:
    """`(code, text)`: the machine-readable ground and the sentence for people."""
    if not claims:
        return "nothing-checked", "the check made no claim, so nothing was shown"
    worst = [judged for judged in claims if judged.verdict is verdict]
    if verdict is Verdict.PASS:
        return "", f"shown for {_count(len(claims))}"
    if verdict is Verdict.FAIL:
        return "shown-bad", "; ".join(_sentence(judged.claim) for judged in worst[:4])
    codes = [judged.claim.code for judged in worst if judged.claim.code]
    code = next((code for code in codes if code not in TOO_SMALL_CODES), codes[0]) if codes else "too-few-rows"
    more = f"; and {len(worst) - 4} more" if len(worst) > 4 else ""
    return code, "; ".join(_sentence(judged.claim) for judged in worst[:4]) + more


def _count(number: int) -> str:
    return "its one claim" if number == 1 else f"all {number} claims"


def _sentence(claim: Claim) -> str:
    if claim.evidence is None:
        return f"{claim.name}: {claim.text}"
    evidence = claim.evidence
    bounds = f"{evidence.estimate:.4g} [{evidence.lower:.4g}, {evidence.upper:.4g}]"
    needed = "" if claim.rows_needed is None else f", about {claim.rows_needed:,} more rows would decide"
    extra = f" ({claim.text})" if claim.text else ""
    return f"{claim.name}: {bounds}, asked {claim.direction} {claim.threshold:g}, n={claim.n:,}{needed}{extra}"
