"""From evidence to verdicts: never a PASS without shown evidence, never a FAIL by chance beyond alpha."""

import pytest

from mlops.clock import SystemClock
from mlops.evaluation.check_crew import Heard, hear_checks
from mlops.evaluation.decisions import combine_verdicts, decide_claims, explain_verdict
from mlops.evaluation.fork_crew import ForkCrew
from mlops.evaluation.gate import decide_checks
from mlops.evaluation.policy import Policy
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings, GateResult, NotEvaluableError, Verdict
from mlops.specs import parse_spec

GOOD, BAD, OPEN = (0.001, 1.0), (1.0, 1e-6), (0.4, 0.4)


def claim(p_values: tuple[float, float], *, code: str = "") -> Claim:
    evidence = Evidence(0.5, 0.4, 0.6, p_good=p_values[0], p_bad=p_values[1])
    return Claim("all", "at least", 0.45, n=100, evidence=evidence, code=code)


def policy(*rules: str) -> Policy:
    checks = "\n".join(
        f"  - {{name: c{index}, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence{extra}}}"
        for index, extra in enumerate(rules)
    )
    text = (
        f"version: 1\nproduct: p\nfavourable_class: y\nchecks:\n{checks}"
        if rules
        else "version: 1\nproduct: p\nfavourable_class: y\n"
    )
    return parse_spec(text, Policy, source="policy")


def judge(used: Policy, hear: object) -> GateResult:
    assert callable(hear)
    heard = hear_checks(used.checks, crew=ForkCrew(hear, size=2), clock=SystemClock())
    assert isinstance(heard, dict)
    return GateResult("p", "sha256:0", used.digest, {}, {"alpha": 0.05, "seed": 0}, decide_checks(used, heard))


REPORT = ", undecided: report, undecided_reason: the groups are too small to decide"
ADVISORY = ", blocking: false"


def test_pass_needs_every_claim_and_fail_needs_one() -> None:
    cases = {
        ("good", "good"): Verdict.PASS,
        ("good", "open"): Verdict.UNDECIDED,
        ("good", "bad"): Verdict.FAIL,
        ("open", "bad"): Verdict.FAIL,
        (): Verdict.UNDECIDED,
    }
    p_values = {"good": GOOD, "bad": BAD, "open": OPEN}
    for names, expected in cases.items():
        findings = {"check": Findings(tuple(claim(p_values[name]) for name in names))}
        judged = decide_claims(findings, blocking=frozenset({"check"}), alpha=0.05)["check"]
        assert combine_verdicts(judged) is expected, names


def test_fail_is_held_against_the_whole_blocking_family() -> None:
    """p = 0.04 alone is an alarm; as one of ten claims it is chance. Advisory claims do not weaken it."""
    alone = decide_claims({"a": Findings((claim((1.0, 0.04)),))}, blocking=frozenset({"a"}), alpha=0.05)
    assert alone["a"][0].verdict is Verdict.FAIL
    crowd = {"a": Findings((claim((1.0, 0.04)),)), "b": Findings(tuple(claim(GOOD) for _ in range(9)))}
    assert decide_claims(crowd, blocking=frozenset(crowd), alpha=0.05)["a"][0].verdict is Verdict.UNDECIDED
    assert decide_claims(crowd, blocking=frozenset({"a"}), alpha=0.05)["a"][0].verdict is Verdict.FAIL


def test_a_claim_with_a_reservation_never_passes() -> None:
    findings = {"a": Findings((claim(GOOD, code="groups-too-small"),))}
    judged = decide_claims(findings, blocking=frozenset({"a"}), alpha=0.05)["a"]
    assert judged[0].verdict is Verdict.UNDECIDED
    assert explain_verdict(judged, Verdict.UNDECIDED)[0] == "groups-too-small"


def test_undecided_stops_unless_the_policy_reports_it_and_a_crash_always_stops() -> None:
    def crash() -> Findings:
        raise RuntimeError("boom")

    def missing() -> Findings:
        raise NotEvaluableError("attribute-missing", "no column sex")

    def opened() -> Findings:
        return Findings((claim(OPEN),))

    cases = {
        "too few rows, blocking": (opened, "", True),
        "too few rows, reported": (opened, REPORT, False),
        "a crash, reported": (crash, REPORT, True),
        "a missing attribute, reported": (missing, REPORT, True),
        "a crash, advisory": (crash, ADVISORY, False),
    }
    for name, (hear, extra, stops) in cases.items():
        result = judge(policy(extra), lambda rule, hear=hear: hear())
        assert result.checks[0].verdict is Verdict.UNDECIDED, name
        assert result.checks[0].is_stopping is stops, name


def test_fail_stops_even_where_undecided_is_reported() -> None:
    result = judge(policy(REPORT), lambda rule: Findings((claim(BAD),)))
    assert result.verdict is Verdict.FAIL
    assert not result.is_go


@pytest.mark.parametrize("rules", [(), (ADVISORY,)])
def test_a_policy_that_blocks_nothing_passes_nothing(rules: tuple[str, ...]) -> None:
    result = judge(policy(*rules), lambda rule: Findings((claim(GOOD),)))
    assert result.verdict is Verdict.UNDECIDED
    assert not result.is_go


def test_nan_evidence_is_not_evaluable() -> None:
    broken = Claim("all", "at least", 0.5, n=9, evidence=Evidence(float("nan"), 0, 1, p_good=0.0, p_bad=1.0))
    result = judge(policy(""), lambda rule: Findings((broken,)))
    assert (result.verdict, result.checks[0].code) == (Verdict.UNDECIDED, "not-finite")


def test_a_check_without_claims_shows_nothing() -> None:
    result = judge(policy(""), lambda rule: Findings(()))
    assert (result.verdict, result.checks[0].code) == (Verdict.UNDECIDED, "nothing-checked")


def test_the_digest_does_not_depend_on_time() -> None:
    used = policy("")

    def result(seconds: float) -> GateResult:
        heard = {"c0": Heard(Findings((claim(GOOD),)), seconds=seconds)}
        return GateResult("p", "sha256:0", used.digest, {}, {}, decide_checks(used, heard))

    quick, slow = result(0.1), result(9.0)
    assert quick.digest == slow.digest
    assert quick.to_json()["seconds"] != slow.to_json()["seconds"]
