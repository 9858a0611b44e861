"""Waivers, values, incident cases and a project's own checks: what they can do, and above all what they cannot."""

import dataclasses
from pathlib import Path

import pytest

from mlops.clock import DAY_US, SystemClock
from mlops.errors import ProjectError
from mlops.evaluation import planted
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.policy import Policy
from mlops.evaluation.report import render_text
from mlops.evaluation.signed_answers import Signed, SignedAnswers
from mlops.evaluation.verdicts import GateResult, Verdict
from mlops.specs import parse_spec

NOW = 1_800_000_000_000_000
HEAD = "version: 1\nproduct: planted\nfavourable_class: granted\nchecks:\n"
OPEN = "  - {name: acc, kind: accuracy, minimum: 0.5, by: [nobody], owner: me, reason: a reason of a sentence}\n"
GOOD = "  - {name: acc, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence}\n"
BAD = "  - {name: acc, kind: accuracy, minimum: 0.99, owner: me, reason: a reason of a sentence}\n"
CLAUSE = "values: [{id: v1, text: we never hurt anybody, owner: board, law: art. 1}]\n"
MAPPED = "values: [{id: v1, text: we never hurt anybody, owner: board, check: acc}]\n"


def judge(
    text: str, *, signed: SignedAnswers | None = None, score: planted.Score = planted.honest, **folders: Path
) -> GateResult:
    policy = parse_spec(HEAD + text, Policy, source="policy")
    hearing = planted.open_planted(planted.PLANTED[0], policy=policy, test_rows=600, train_rows=300)
    model = planted.judged_of_score(score, name="m")
    hearing = dataclasses.replace(hearing, load_model=lambda: model, now_us=NOW, **folders)
    return judge_hearing(hearing, candidate="sha256:c", clock=SystemClock(), inputs={}, signed=signed)


def waiver(*, candidate: str | None = "sha256:c", until_us: int = NOW + DAY_US, subject: str = "acc") -> Signed:
    return Signed(subject, candidate, by="ada", reason="known gap", until_us=until_us, envelope="good")


def answers(*, waivers: tuple[Signed, ...] = (), statements: tuple[Signed, ...] = ()) -> SignedAnswers:
    return SignedAnswers(waivers, statements, verify=lambda signed, owner: signed.envelope == "good")


def test_a_valid_waiver_lets_one_undecided_check_through() -> None:
    result = judge(OPEN, signed=answers(waivers=(waiver(),)))
    assert result.checks[0].verdict is Verdict.UNDECIDED
    assert result.is_go
    assert "GO (PASS): 0 blocking checks are shown to hold. 1 is undecided and waived." in render_text(result)
    assert "waived by ada until 2027-01-16T08:00:00Z: known gap" in render_text(result)
    assert result.checks[0].waiver == {"by": "ada", "reason": "known gap", "until": "2027-01-16T08:00:00Z"}


NOT_WAIVED = {
    "expired": (waiver(until_us=NOW), "it ended on 2027-01-15"),
    "for another candidate": (waiver(candidate="sha256:d"), "another candidate"),
    "for every candidate": (waiver(candidate=None), "no candidate"),
    "for another check": (waiver(subject="loss"), ""),
    "with a forged signature": (dataclasses.replace(waiver(), envelope="forged"), "the role me"),
}


@pytest.mark.parametrize("case", NOT_WAIVED)
def test_other_waivers_do_nothing_and_the_report_says_why(case: str) -> None:
    signed, words = NOT_WAIVED[case]
    result = judge(OPEN, signed=answers(waivers=(signed,)))
    assert not result.is_go
    assert words in result.checks[0].explanation
    assert ("does not count" in result.checks[0].explanation) is bool(words)


def test_a_fail_cannot_be_waived_and_nothing_signed_counts_without_a_verifier() -> None:
    assert judge(BAD, signed=answers(waivers=(waiver(),))).verdict is Verdict.FAIL
    assert not judge(OPEN, signed=SignedAnswers((waiver(),))).is_go


def test_an_unanswered_clause_blocks_and_a_signed_statement_answers_it() -> None:
    assert [check.code for check in judge(GOOD + CLAUSE).checks if check.is_stopping] == ["unanswered"]
    statement = Signed("v1", None, by="board", reason="we looked", until_us=NOW + DAY_US, envelope="good")
    assert judge(GOOD + CLAUSE, signed=answers(statements=(statement,))).is_go
    old = dataclasses.replace(statement, until_us=NOW - 1)
    assert [
        check.code for check in judge(GOOD + CLAUSE, signed=answers(statements=(old,))).checks if check.is_stopping
    ] == ["statement-not-valid"]


def test_a_clause_says_what_its_check_says() -> None:
    assert judge(GOOD + MAPPED).is_go
    assert judge(BAD + MAPPED).checks[1].verdict is Verdict.FAIL
    with pytest.raises(ProjectError):
        parse_spec(HEAD + GOOD + MAPPED.replace("check: acc", "check: ghost"), Policy, source="p")


PROJECT = "  - {name: mine, kind: project, function: 'mine.py:FUNCTION', owner: me, reason: a reason of a sentence}\n"
CODE = """
def good(evidence):
    return [evidence.at_least("right", evidence.answers.classes == evidence.rows.labels, 0.5)]

def crash(evidence):
    raise RuntimeError("boom")

def cheat(evidence):
    return [True]

def silent(evidence):
    return []
"""


@pytest.mark.parametrize(
    ("function", "verdict", "code"),
    [
        ("good", Verdict.PASS, ""),
        ("crash", Verdict.UNDECIDED, "crashed"),
        ("cheat", Verdict.UNDECIDED, "not-claims"),
        ("silent", Verdict.UNDECIDED, "nothing-checked"),
        ("absent", Verdict.UNDECIDED, "check-missing"),
    ],
)
def test_a_projects_own_check_is_judged_like_any_other(
    tmp_path: Path, function: str, verdict: Verdict, code: str
) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    result = judge(PROJECT.replace("FUNCTION", function), project_checks_folder=tmp_path)
    assert (result.checks[0].verdict, result.checks[0].code) == (verdict, code)


INCIDENTS = "  - {name: cases, kind: incidents, owner: me, reason: a reason of a sentence}\n"
CASE = """
version: 1
id: i1
title: a good applicant was refused
severity: SEVERITY
origin: ticket 7
expires: EXPIRES
input: {merit: 3, hours: 60, sector: office, area: north}
relation: {kind: equals, answer: ANSWER}
neighbourhood: [{column: hours, up: 3, down: 3}, {column: area, to: any}]
"""


def incident(folder: Path, *, severity: int = 1, expires: str = "2030-01-01", answer: str = "granted") -> Path:
    text = CASE.replace("SEVERITY", str(severity)).replace("EXPIRES", expires).replace("ANSWER", answer)
    (folder / "i1.yaml").write_text(text)
    return folder


def refuses_sixty_hours_in_the_west(columns: planted.Columns) -> object:
    is_hit = (columns["hours"] == 61) & (columns["area"] == 2)
    return planted.honest(columns) - 60 * is_hit


def test_an_incident_that_stays_mended_passes_and_one_bad_neighbour_of_severity_one_fails(tmp_path: Path) -> None:
    folder = incident(tmp_path)
    assert judge(INCIDENTS, incidents_folder=folder).is_go
    broken = judge(INCIDENTS, incidents_folder=folder, score=refuses_sixty_hours_in_the_west)  # type: ignore[arg-type]
    assert broken.verdict is Verdict.FAIL


def test_an_expired_case_is_listed_and_an_empty_corpus_holds(tmp_path: Path) -> None:
    result = judge(INCIDENTS, incidents_folder=incident(tmp_path, expires="2020-01-01", answer="refused"))
    assert result.is_go
    assert result.checks[0].details["expired"] == ["i1"]
    assert judge(INCIDENTS, incidents_folder=tmp_path / "none").is_go


def test_a_wrong_case_is_undecided(tmp_path: Path) -> None:
    assert judge(INCIDENTS, incidents_folder=incident(tmp_path, answer="maybe")).checks[0].code == "case-wrong"


@pytest.mark.parametrize("relation", ["{kind: invariant, column: hours}", "{kind: monotone, column: sector}"])
def test_a_relation_that_tries_nothing_is_no_pass(tmp_path: Path, relation: str) -> None:
    path = incident(tmp_path) / "i1.yaml"
    path.write_text(path.read_text().replace("{kind: equals, answer: granted}", relation))
    found = judge(INCIDENTS, incidents_folder=tmp_path).checks[0]
    assert (found.verdict, found.code) == (Verdict.UNDECIDED, "case-wrong")
