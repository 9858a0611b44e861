"""The gate's words as values: claim, finding, check result, gate result. Leaves to others: deciding (decisions.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from mlops.provenance.digest import digest_json

if TYPE_CHECKING:
    from mlops.evaluation.rates import Evidence  # loads scipy, which costs a second

Direction = Literal["at least", "at most"]


class Verdict(StrEnum):
    """What a check says."""

    PASS = "PASS"  # noqa: S105 - a verdict, no password
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


TOO_SMALL_CODES = frozenset({"too-few-rows", "groups-too-small", "not-estimable"})
"""Grounds of an UNDECIDED that `undecided: report` lets through; a crash or a missing attribute is not among them."""


class NotEvaluableError(Exception):
    """A check cannot say anything: becomes UNDECIDED with this code and text, never PASS.

    Raised by checks only, and caught by the gate around each check.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True)
class Claim:
    """One requirement of a check with its evidence: overall, for one slice, or for one pair of groups."""

    name: str
    direction: Direction
    threshold: float
    n: int
    """Rows (or positives, or members) that the estimate rests on."""
    evidence: Evidence | None
    """None: not evaluable; `code` and `text` say why."""
    rows_needed: int | None = None
    """Further rows that would decide, if the estimate stayed; None when unknown, out of reach or not needed."""
    code: str = ""
    text: str = ""
    """What stands behind the estimate (the worst pair, …), or why there is none."""


@dataclass(frozen=True)
class Findings:
    """What a check measured; the gate makes a verdict of it."""

    claims: tuple[Claim, ...]
    details: dict[str, Any] = field(default_factory=dict)
    """JSON for the report: tables and points of plots."""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """JSON values; numbers rounded to 10 significant digits, so that digests survive another summation order."""
        claim, evidence = self.claim, self.claim.evidence
        numbers = (
            {"estimate": None, "lower": None, "upper": None, "p_good": None, "p_bad": None}
            if evidence is None
            else {
                name: round_number(getattr(evidence, name))
                for name in ("estimate", "lower", "upper", "p_good", "p_bad")
            }
        )
        return {
            "name": claim.name,
            "verdict": self.verdict.value,
            "direction": claim.direction,
            "threshold": claim.threshold,
            "n": claim.n,
            "rows_needed": claim.rows_needed,
            "code": claim.code,
            "text": claim.text,
            **numbers,
        }


@dataclass(frozen=True)
class CheckResult:
    """One check of the policy with its verdict."""

    name: str
    kind: str
    title: str
    owner: str
    policy_reason: str
    """Why the threshold is where it is, as written in the policy."""
    is_blocking: bool
    is_undecided_reported: bool
    """UNDECIDED is reported only; `undecided_reason` says why."""
    undecided_reason: str
    verdict: Verdict
    claims: tuple[JudgedClaim, ...]
    code: str
    """Machine-readable ground of an UNDECIDED or FAIL; empty on PASS."""
    explanation: str
    """Why, for people."""
    details: dict[str, Any]
    seconds: float
    waiver: dict[str, Any] | None = None
    """The signed exception that lets this UNDECIDED through, if there is one."""

    @property
    def is_stopping(self) -> bool:
        """Whether this check alone makes the gate say no."""
        if not self.is_blocking or self.verdict is Verdict.PASS:
            return False
        if self.verdict is Verdict.FAIL:
            return True
        is_let_through = self.is_undecided_reported and self.code in TOO_SMALL_CODES
        return not is_let_through and self.waiver is None

    @property
    def leading(self) -> JudgedClaim | None:
        """The claim that decided: the worst verdict, and in it the least favourable evidence."""
        order = {Verdict.FAIL: 0, Verdict.UNDECIDED: 1, Verdict.PASS: 2}

        def key(judged: JudgedClaim) -> tuple[int, float]:
            evidence = judged.claim.evidence
            return order[judged.verdict], -1.0 if evidence is None else -evidence.p_good

        return min(self.claims, key=key, default=None)

    def to_json(self) -> dict[str, Any]:
        """All but the seconds."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "owner": self.owner,
            "policy_reason": self.policy_reason,
            "blocking": self.is_blocking,
            "undecided": "report" if self.is_undecided_reported else "block",
            "undecided_reason": self.undecided_reason,
            "verdict": self.verdict.value,
            "stops": self.is_stopping,
            "code": self.code,
            "explanation": self.explanation,
            "claims": [judged.to_json() for judged in self.claims],
            "details": round_numbers(self.details),
            "waiver": self.waiver,
        }


@dataclass(frozen=True)
class GateResult:
    """The gate's answer about one candidate."""

    product: str
    candidate: str
    """Digest of the judged folder."""
    policy: str
    """Digest of the policy."""
    inputs: dict[str, str]
    """Digests of everything else that was judged on: rows, champion, incidents, code of project checks."""
    settings: dict[str, Any]
    """Alpha, seed, numbers of rows."""
    checks: tuple[CheckResult, ...]
    context: dict[str, Any] = field(default_factory=dict)
    """Shown and never judged: the price of fairness."""

    @property
    def verdict(self) -> Verdict:
        """FAIL if a blocking check fails; UNDECIDED if one is undecided and that stops; else PASS."""
        stopping = {check.verdict for check in self.checks if check.is_stopping}
        if Verdict.FAIL in stopping:
            return Verdict.FAIL
        if stopping or not any(check.is_blocking for check in self.checks):
            return Verdict.UNDECIDED
        return Verdict.PASS

    @property
    def is_go(self) -> bool:
        """Whether the candidate may be registered."""
        return self.verdict is Verdict.PASS

    @property
    def digest(self) -> str:
        """`sha256:…` of the result; says nothing about how long anything took."""
        return digest_json(self.content())

    def content(self) -> dict[str, Any]:
        """What is digested: equal for equal inputs, whenever and on however many cores it ran."""
        return {
            "version": 1,
            "product": self.product,
            "candidate": self.candidate,
            "policy": self.policy,
            "inputs": self.inputs,
            "settings": self.settings,
            "verdict": self.verdict.value,
            "checks": [check.to_json() for check in self.checks],
            "context": round_numbers(self.context),
        }

    def to_json(self) -> dict[str, Any]:
        """Content, digest and durations."""
        return {
            **self.content(),
            "digest": self.digest,
            "seconds": {check.name: round(check.seconds, 3) for check in self.checks},
        }


def round_number(value: float) -> float:
    """Ten significant digits: sums that differ in their last bits count as equal."""
    return float(f"{value:.10g}")


def round_numbers(value: Any) -> Any:
    """`round_number` for every float inside a JSON value."""
    if isinstance(value, float):
        return round_number(value)
    if isinstance(value, dict):
        return {str(key): round_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(item) for item in value]
    return value
