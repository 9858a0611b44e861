"""What verdicts mean in words, for page and terminal alike. Leaves to others: layout (report.py)."""

from __future__ import annotations

from dataclasses import dataclass

from mlops.evaluation.verdicts import CheckResult, Claim, GateResult, JudgedClaim, Verdict

DECIMAL_CLAIMS = frozenset({"epsilon", "change of loss"})
"""Claims whose numbers are no shares, whatever their kind."""
DECIMAL_KINDS = frozenset({"loss", "parity", "size", "exposure"})
"""Kinds whose numbers are no shares; all others are shown in percent or points."""
GAP_KINDS = frozenset({"selection-rate-gap", "equalized-odds-gap", "equal-opportunity-gap", "mean-gap"})
"""Kinds whose claims are named after what the groups are made by."""
MANY_ROWS = 1_000_000
NEXT_STEPS = {
    "attribute-missing": "join the attribute to the test rows (it need not be an input of the model)",
    "single-group": "test rows of a second group are needed",
    "no-positives": "test rows with the favourable answer are needed in each group",
    "not-estimable": "more test rows of the small groups are needed",
    "groups-too-small": "more test rows of the groups listed as too small are needed",
    "time-out": "raise the check's `time_limit`, or ask for fewer rows",
    "crashed": "mend the check; `mlops gate show --json` has its error",
    "stale-dataset": "train on the version of the dataset that is judged on",
    "wrong-class-order": "export the candidate with the classes in the dataset's order",
    "not-finite": "find out why the model answers NaN; it must not serve",
    "parity-broken": "export again: model.onnx is not the model that was trained",
    "no-references": "train the sweep with an audit pool",
    "no-twins": "judge with the sweep's ledger at hand, run more trials, or widen `objective_within`",
    "no-champion": "pass the version in production, or let the policy allow a first release",
    "unanswered": "the owner signs a statement, or the clause names a check",
    "statement-not-valid": "the owner signs the statement again",
    "nothing-checked": "the check must make a claim",
}


@dataclass(frozen=True)
class Advice:
    """One thing that stands in the way, and what would change it."""

    check: CheckResult
    why: str
    change: str


def headline(result: GateResult) -> str:
    """The verdict in one sentence."""
    stopping = [check for check in result.checks if check.is_stopping]
    blocking = [check for check in result.checks if check.is_blocking]
    if not blocking:
        return "the policy asks for nothing, so nothing was shown."
    if result.is_go:
        through = [check for check in blocking if check.verdict is Verdict.UNDECIDED]
        waived = sum(1 for check in through if check.waiver)
        shown = _many(len(blocking) - len(through), "blocking check is", "blocking checks are")
        parts = [f"{_many(len(through) - waived, 'stays', 'stay')} undecided, which the policy allows"]
        parts = parts if len(through) > waived else []
        parts += [f"{_many(waived, 'is', 'are')} undecided and waived"] if waived else []
        also = f" {', and '.join(parts)}." if parts else ""
        return f"{shown} shown to hold.{also}{_say_advice(result)}"
    failed = sum(1 for check in stopping if check.verdict is Verdict.FAIL)
    parts = [f"{_many(failed, 'check is', 'checks are')} shown to be violated"] if failed else []
    if len(stopping) > failed:
        parts.append(f"{_many(len(stopping) - failed, 'check', 'checks')} could not be decided")
    return f"{' and '.join(parts)}."


def _say_advice(result: GateResult) -> str:
    """What the advisory checks say, for who approves; empty when all of them hold."""
    verdicts = [check.verdict for check in result.checks if not check.is_blocking]
    failed, open_ = verdicts.count(Verdict.FAIL), verdicts.count(Verdict.UNDECIDED)
    parts = [_many(failed, "fails", "fail")] if failed else []
    parts += [_many(open_, "stays undecided", "stay undecided")] if open_ else []
    return f" Of the checks that only advise, {' and '.join(parts)}: see below before you approve." if parts else ""


def advise(result: GateResult) -> list[Advice]:
    """Everything that is not a PASS, what stops first."""
    open_checks = sorted(
        (check for check in result.checks if check.verdict is not Verdict.PASS),
        key=lambda check: (not check.is_stopping, check.verdict is not Verdict.FAIL, not check.is_blocking),
    )
    return [Advice(check, why=explain_check(check), change=suggest_change(check)) for check in open_checks]


def explain_check(check: CheckResult) -> str:
    """Why the check says what it says."""
    judged = check.leading
    if judged is None or judged.claim.evidence is None:
        return f"{check.explanation[:1].upper()}{check.explanation[1:]}."
    others = sum(1 for other in check.claims if other.verdict is check.verdict) - 1
    more = f" The same holds for {others} more." if others and check.verdict is not Verdict.PASS else ""
    faults = "".join(f" {fault[:1].upper()}{fault[1:]}." for fault in check.details.get("not_waived", ()))
    return describe_claim(judged, kind=check.kind) + more + faults


def describe_claim(judged: JudgedClaim, *, kind: str) -> str:
    """Estimate, bounds and what was asked, as a sentence."""
    claim = judged.claim
    evidence = claim.evidence
    kind = "loss" if claim.name in DECIMAL_CLAIMS else kind
    if evidence is None:
        return f"{claim.name}: {claim.text}."
    is_gap = kind in GAP_KINDS and claim.direction == "at most"
    name = "" if claim.name == "all" else f"{'Gap by ' if is_gap else ''}{claim.name}: "
    bounds = f"between {show(evidence.lower, kind)} and {show(evidence.upper, kind)} with the rows at hand"
    if evidence.lower == evidence.upper:
        bounds = "measured exactly"
    text = f" ({claim.text})" if claim.text else ""
    if claim.text.startswith("rows "):  # the words say what is counted, so they stand in front
        name = "" if claim.name in claim.text else name
        name, text = f"{name}{claim.text if name else f'R{claim.text[1:]}'}: ", ""
    return (
        f"{name}{show(evidence.estimate, kind)}, {bounds}; asked is {claim.direction} "
        f"{show(claim.threshold, kind)}{text}."
    )


def suggest_change(check: CheckResult) -> str:
    """What would turn the verdict."""
    judged = check.leading
    if check.verdict is Verdict.FAIL and judged is not None and judged.claim.evidence is not None:
        return _move(judged.claim, kind=check.kind)
    hint = NEXT_STEPS.get(check.code, "")
    needed = [
        other.claim.rows_needed
        for other in check.claims
        if other.claim.rows_needed and other.verdict is Verdict.UNDECIDED
    ]
    if needed:
        rows = f"about {max(needed):,} more test rows would decide it, if the rates stay as they are"
        if max(needed) > MANY_ROWS:
            rows = f"the value lies so near the limit that more than {MANY_ROWS:,} further test rows would be needed"
        hint = f"{rows}; {hint}" if hint else rows
    elif not hint and judged is not None and judged.claim.evidence is not None:
        hint = _show_with_these_rows(judged.claim, kind=check.kind)
    return f"{hint[:1].upper()}{hint[1:]}." if hint else "Mend what is named above."


def _move(claim: Claim, *, kind: str) -> str:
    assert claim.evidence is not None
    evidence = claim.evidence
    is_minimum = claim.direction == "at least"
    distance = abs(evidence.estimate - claim.threshold)
    slack = evidence.estimate - evidence.lower if is_minimum else evidence.upper - evidence.estimate
    what = "It" if claim.name == "all" else f"{claim.name}: the value"
    near, far = (_show_distance(it, claim, kind=kind) for it in (distance, distance + max(slack, 0.0)))
    return (
        f"{what} must {'rise' if is_minimum else 'fall'} by {near} to reach the limit, and by about "
        f"{far} to show it with these rows."
    )


def _show_with_these_rows(claim: Claim, *, kind: str) -> str:
    assert claim.evidence is not None
    is_minimum = claim.direction == "at least"
    distance = claim.threshold - claim.evidence.lower if is_minimum else claim.evidence.upper - claim.threshold
    return (
        "the value lies too near the limit for these rows: it must "
        f"{'rise' if is_minimum else 'fall'} by about {_show_distance(abs(distance), claim, kind=kind)} to be shown "
        "to hold"
    )


def _show_distance(value: float, claim: Claim, *, kind: str) -> str:
    """From 31.6 % to 5 % it is 26.6 points, not 26.6 %."""
    text = show(value, "loss" if claim.name in DECIMAL_CLAIMS else kind)
    return f"{text.removesuffix(' %')} points" if text.endswith(" %") else text


def show(value: float, kind: str) -> str:
    """A number for people: percent for shares, else three digits."""
    if kind == "size":
        return f"{value:.3g} MB"
    if kind in DECIMAL_KINDS:
        return f"{value:.3g}"
    digits = 2 if 0 < abs(value) < 0.001 else 1
    return f"{100 * value:.{digits}f} %"


def _many(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
