"""May a version enter an environment? One pure decision over gathered facts, with every ground named.

Leaves to others: gathering facts (promotion_facts.py), and acting on the answer (state_keeper.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlops.clock import SECOND_US, render_time
from mlops.deploy.approval import SignedApproval
from mlops.deploy.desired_state import DesiredState
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.evidence_changes import EvidenceChange
from mlops.errors import Reason, Refusal

Cause = Literal["promote", "erasure"]


@dataclass(frozen=True)
class Release:
    """A released version as the ledger knows it."""

    product: str
    number: int
    image: str
    """`sha256:…`."""
    candidate: str
    gate: str
    version: str
    """Digest of the registration."""
    commit: str | None
    """Code commit it was made from."""


@dataclass(frozen=True)
class ConsumerFact:
    """One live consumer against this version's contract."""

    service: str
    release: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class PromotionFacts:
    """Everything the decision rests on."""

    release: Release
    gate_verdict: str
    """`PASS`, `FAIL`, `UNDECIDED`, or `missing`."""
    probe_verdict: str
    """As above: the running image answered as the judged model did."""
    chain_problems: tuple[str, ...]
    """Broken links, missing signatures, blobs that changed; empty when all holds."""
    authors: frozenset[str]
    """People (or bare addresses) who wrote what is promoted; they cannot approve it."""
    approvals: tuple[SignedApproval, ...]
    consumers: tuple[ConsumerFact, ...]
    changes: tuple[EvidenceChange, ...]
    """Since the version that serves now."""
    barred: tuple[int, str] | None
    """When (microseconds) and why the image was barred here."""
    served_well_in: frozenset[str]
    """Environments in which this image served well."""
    fences: tuple[str, ...] = ()
    """Reasons that forbid this version whatever people say, such as an open erasure of a person it was trained on."""
    desired: DesiredState | None = None
    """What is desired there now."""


@dataclass(frozen=True)
class ChecklistItem:
    """One rule and how it came out."""

    code: str
    text: str
    is_kept: bool


@dataclass(frozen=True)
class Checklist:
    """All rules of an environment for one version."""

    items: tuple[ChecklistItem, ...]
    approvers: tuple[str, ...]
    """People whose approval counts."""
    approval_ids: tuple[str, ...]

    @property
    def refusal(self) -> Refusal | None:
        """Every rule that is not kept; None when all are."""
        reasons = tuple(Reason(item.code, item.text) for item in self.items if not item.is_kept)
        return Refusal(reasons) if reasons else None


def decide_promotion(
    facts: PromotionFacts, rules: EnvironmentSpec, *, now_us: int, cause: Cause = "promote"
) -> Checklist | Refusal:
    """The checklist when every rule is kept, else every ground against."""
    checklist = examine_promotion(facts, rules, now_us=now_us, cause=cause)
    return checklist.refusal or checklist


def examine_promotion(
    facts: PromotionFacts, rules: EnvironmentSpec, *, now_us: int, cause: Cause = "promote"
) -> Checklist:
    """Every rule, kept or not, in the order people read them."""
    counted, ignored = count_approvals(facts, rules, now_us=now_us, cause=cause)
    needed = rules.approvals.needed
    items = [
        _item("gate-passed", facts.gate_verdict == "PASS", f"the gate said {facts.gate_verdict}"),
        _item("image-probed", facts.probe_verdict == "PASS", f"the probe of the running image: {facts.probe_verdict}"),
        *_list_or_one(
            "chain-verified",
            facts.chain_problems,
            "every signature and digest from data to image holds",
            "chain-broken",
        ),
        *_list_or_one("no-fence", facts.fences, "nothing forbids this version", "fenced"),
    ]
    if rules.after is not None:
        text = (
            f"served well in {rules.after}"
            if rules.after in facts.served_well_in
            else f"must serve well in {rules.after} first"
        )
        items.append(_item("earlier-environment", rules.after in facts.served_well_in, text))
    items.append(_judge_bar(facts, counted))
    names = ", ".join(sorted(counted)) or "nobody"
    told = f"{len(counted)} of {needed} approvals needed: {names}" if needed else "no approval is needed here"
    items.append(_item("approvals", len(counted) >= needed, told))
    is_short = len(counted) < needed
    items += [ChecklistItem(code, text if is_short else f"not counted: {text}", not is_short) for code, text in ignored]
    items += _judge_consumers(facts.consumers)
    items += [_judge_change(change, frozenset(counted), needed=needed) for change in facts.changes]
    return Checklist(tuple(items), tuple(sorted(counted)), tuple(sorted(counted.values())))


def count_approvals(
    facts: PromotionFacts, rules: EnvironmentSpec, *, now_us: int, cause: Cause
) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """People whose approval counts (with its id), and why each other approval does not.

    A person counts once, whatever keys they signed with; so does a public key, whatever names it goes by.
    """
    counted: dict[str, str] = {}
    used_keys: set[str] = set()
    ignored: list[tuple[str, str]] = []
    for signed in facts.approvals:
        problem = signed.problem or _find_flaw(signed, facts, rules, now_us=now_us, cause=cause)
        if problem is not None:
            ignored.append(problem)
            continue
        assert signed.approval and signed.person and signed.public_key
        if signed.person in counted or signed.public_key in used_keys:
            ignored.append(("approval-repeated", f"{signed.person} approved more than once; a person counts once"))
            continue
        counted[signed.person] = signed.approval.approval_id
        used_keys.add(signed.public_key)
    return counted, tuple(dict.fromkeys(ignored))


def _find_flaw(
    signed: SignedApproval, facts: PromotionFacts, rules: EnvironmentSpec, *, now_us: int, cause: Cause
) -> tuple[str, str] | None:
    approval, person, release = signed.approval, signed.person, facts.release
    if approval is None or person is None:
        return ("approval-damaged", "an approval names nobody")
    expires_us = approval.issued_us + round(rules.approvals.valid_for * SECOND_US)
    if (approval.product, approval.environment) != (release.product, rules.name):
        return ("approval-elsewhere", f"{person} approved {approval.product} for {approval.environment}")
    is_standing = cause == "erasure" and rules.erasure == "automatic" and approval.purpose == "erasure"
    if approval.purpose != "promotion" and not is_standing:
        return ("approval-other-purpose", f"{person} approved retrains after erasures, not this promotion")
    if not is_standing and (approval.image, approval.gate) != (release.image, release.gate):
        return (
            "approval-for-other-version",
            f"{person} approved {approval.product}@{approval.number}, another image or gate result",
        )
    if now_us >= expires_us and not is_standing:
        return ("approval-expired", f"the approval by {person} expired {render_time(expires_us)}")
    if approval.issued_us > now_us + 300 * SECOND_US:
        return ("approval-from-the-future", f"the approval by {person} is dated {render_time(approval.issued_us)}")
    if facts.barred is not None and approval.issued_us <= facts.barred[0]:
        return (
            "approval-before-failure",
            f"{person} approved before this image failed here; approve again to lift that",
        )
    if person in facts.authors:
        return ("approval-by-author", f"{person} is an author of what is promoted and cannot approve it")
    return None


def _judge_bar(facts: PromotionFacts, counted: dict[str, str]) -> ChecklistItem:
    if facts.barred is None:
        return ChecklistItem("not-barred", "it has not failed here before", True)
    at_us, why = facts.barred
    text = f"it failed here at {render_time(at_us)}: {why}"
    return ChecklistItem("barred", f"{text}; a person must approve it anew (`mlops approve`)", bool(counted))


def _judge_consumers(consumers: tuple[ConsumerFact, ...]) -> list[ChecklistItem]:
    items: list[ChecklistItem] = []
    for consumer in consumers:
        name = f"{consumer.service} {consumer.release}"
        if not consumer.problems:
            items.append(ChecklistItem("consumer-kept", f"{name}: contract kept", True))
        items += [ChecklistItem("consumer-broken", f"{name} {problem}", False) for problem in consumer.problems]
    return items


def _judge_change(change: EvidenceChange, approvers: frozenset[str], *, needed: int) -> ChecklistItem:
    """A change that is not provably stricter needs an approver who did not write it, where approvals are needed."""
    who = ", ".join(change.writers) or "unknown"
    text = f"{change.path}: {change.text} (by {who})"
    if change.is_stricter or needed == 0:
        return ChecklistItem("evidence-changed", text, True)
    independent = sorted(approvers - set(change.writers))
    if independent and change.writers:
        return ChecklistItem("evidence-loosened", f"{text}; approved by {', '.join(independent)}", True)
    return ChecklistItem("evidence-loosened", f"{text}; needs an approver who did not write it", False)


def _item(code: str, is_kept: bool, text: str) -> ChecklistItem:
    return ChecklistItem(code if is_kept else f"not-{code}", text, is_kept)


def _list_or_one(code: str, problems: tuple[str, ...], text: str, bad: str) -> list[ChecklistItem]:
    if not problems:
        return [ChecklistItem(code, text, True)]
    return [ChecklistItem(bad, problem, False) for problem in problems]
