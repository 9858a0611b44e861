"""What people sign: waivers of undecided checks, and statements that answer a clause of the company's values.

The gate only asks a function whether a signature holds; keys and roles are known above (mlops/deploy).
Leaves to others: signing, and who may sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlops.clock import render_time
from mlops.evaluation.policy import Clause, Policy
from mlops.evaluation.verdicts import CheckResult, Verdict


@dataclass(frozen=True)
class Signed:
    """A signed sentence: a waiver of one check, or a statement about one clause."""

    subject: str
    """Name of the check, or id of the clause."""
    candidate: str | None
    """Digest that a waiver is for; None: a statement, good for every candidate."""
    by: str
    reason: str
    until_us: int
    """Not valid any more from this time on."""
    envelope: str = ""
    """The signature with what it covers, for the verifying function."""


Verify = Callable[[Signed, str], bool]
"""Whether it is signed by somebody who has the owner's role."""


def refuse_all(_signed: Signed, _owner: str) -> bool:
    """The verifying function of callers that know no keys: nothing signed counts."""
    return False


def apply_waivers(
    checks: tuple[CheckResult, ...], waivers: tuple[Signed, ...], *, candidate: str, now_us: int, verify: Verify
) -> tuple[CheckResult, ...]:
    """Attach a valid waiver to each UNDECIDED check that has one; a FAIL cannot be waived."""

    def waived(check: CheckResult) -> CheckResult:
        if check.verdict is not Verdict.UNDECIDED:
            return check
        faults = []
        for waiver in waivers:
            if waiver.subject != check.name:
                continue
            fault = _find_fault(waiver, candidate=candidate, owner=check.owner, now_us=now_us, verify=verify)
            if not fault:
                return replace(check, waiver=_describe(waiver))
            faults.append(f"a waiver by {waiver.by} does not count: {fault}")
        if not faults:
            return check
        explanation = "; ".join([check.explanation, *faults])
        return replace(check, explanation=explanation, details={**check.details, "not_waived": faults})

    return tuple(waived(check) for check in checks)


def _find_fault(waiver: Signed, *, candidate: str, owner: str, now_us: int, verify: Verify) -> str:
    if waiver.candidate != candidate:
        return f"it is for {'another candidate' if waiver.candidate else 'no candidate'}"
    if waiver.until_us <= now_us:
        return f"it ended on {render_time(waiver.until_us)}"
    return "" if verify(waiver, owner) else f"its signature is not that of somebody with the role {owner}"


def answer_clauses(
    policy: Policy, checks: tuple[CheckResult, ...], statements: tuple[Signed, ...], *, now_us: int, verify: Verify
) -> tuple[CheckResult, ...]:
    """One result per clause of the values: that of its check, or of a signed statement; unanswered is UNDECIDED."""
    by_name = {check.name: check for check in checks}
    return tuple(_answer(clause, by_name, statements, now_us=now_us, verify=verify) for clause in policy.values)


def _answer(
    clause: Clause, checks: dict[str, CheckResult], statements: tuple[Signed, ...], *, now_us: int, verify: Verify
) -> CheckResult:
    if clause.check is not None:
        check = checks[clause.check]
        said = f"answered by the check “{check.title}”: {check.verdict.value}"
        return _clause_result(clause, check.verdict, code=check.code, text=said, like=check)
    found = [statement for statement in statements if statement.subject == clause.id and statement.candidate is None]
    valid = [statement for statement in found if statement.until_us > now_us and verify(statement, clause.owner)]
    if valid:
        text = f"stated by {valid[0].by} until {render_time(valid[0].until_us)}: {valid[0].reason}"
        return _clause_result(clause, Verdict.PASS, code="", text=text)
    code = "unanswered" if not found else "statement-not-valid"
    text = "nobody has signed a statement" if not found else "the statement is expired or its signature does not hold"
    return _clause_result(clause, Verdict.UNDECIDED, code=code, text=text)


def _clause_result(
    clause: Clause, verdict: Verdict, *, code: str, text: str, like: CheckResult | None = None
) -> CheckResult:
    law = f" ({clause.law})" if clause.law else ""
    return CheckResult(
        name=f"value-{clause.id}",
        kind="value",
        title=f"{clause.text}{law}",
        owner=clause.owner,
        policy_reason="a clause of the company's values" + (f"; it follows {clause.law}" if clause.law else ""),
        is_blocking=True if like is None else like.is_blocking,
        is_undecided_reported=False if like is None else like.is_undecided_reported,
        undecided_reason="" if like is None else like.undecided_reason,
        verdict=verdict,
        claims=(),
        code=code,
        explanation=text,
        details={},
        seconds=0.0,
        waiver=None if like is None else like.waiver,
    )


def _describe(signed: Signed) -> dict[str, Any]:
    return {"by": signed.by, "reason": signed.reason, "until": render_time(signed.until_us)}


@dataclass(frozen=True)
class SignedAnswers:
    """Everything signed that lies before the gate."""

    waivers: tuple[Signed, ...] = ()
    statements: tuple[Signed, ...] = ()
    verify: Verify = refuse_all

    def add_to(
        self, checks: tuple[CheckResult, ...], *, policy: Policy, candidate: str, now_us: int
    ) -> tuple[CheckResult, ...]:
        """Checks with their waivers, and a result for each clause of the values."""
        waived = apply_waivers(checks, self.waivers, candidate=candidate, now_us=now_us, verify=self.verify)
        return waived + answer_clauses(policy, waived, self.statements, now_us=now_us, verify=self.verify)
