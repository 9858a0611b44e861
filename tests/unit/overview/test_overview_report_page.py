"""The report page from plain values: what it says first, what it warns of, and that nothing can break out of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from mlops.clock import DAY_US, SECOND_US
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.sql_deployments import DeploymentRow
from mlops.overview.open_matters import OpenErasure, OpenIncident, OpenMatters
from mlops.overview.report import ApprovalFacts, ConsumerLine, FailedLine, MoveFacts, Report, VersionFacts
from mlops.overview.report_page import (
    compare_versions,
    describe_differences,
    find_attention,
    render_report_page,
    write_headline,
)
from mlops.overview.waiting import WaitingLine

NOW = 1_800_000_000 * SECOND_US


def claim(estimate: float, **changes: Any) -> dict[str, Any]:
    content = {
        "name": "all", "verdict": "PASS", "direction": "at least", "threshold": 0.8, "n": 100, "rows_needed": None,
        "code": "", "text": "", "estimate": estimate, "lower": estimate - 0.01, "upper": estimate + 0.01,
        "p_good": 0.0, "p_bad": 1.0,
    }  # fmt: skip
    return {**content, **changes}


def check(name: str, *claims: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = {
        "name": name, "kind": "accuracy", "title": name.capitalize(), "owner": "t", "policy_reason": "because",
        "blocking": True, "undecided": "block", "undecided_reason": "", "verdict": "PASS", "stops": False, "code": "",
        "explanation": "", "claims": list(claims), "details": {}, "waiver": None,
    }  # fmt: skip
    return {**content, **changes}


def gate(accuracy: float) -> dict[str, Any]:
    undecided = claim(0.2, verdict="UNDECIDED", direction="at most", threshold=0.1, rows_needed=5000, name="race")
    gap = check("gap", undecided, kind="equalized-odds-gap", verdict="UNDECIDED", undecided_reason="Few rows.")
    return {
        "digest": "sha256:g",
        "settings": {"rows": {"test": 1000}},
        "checks": [check("accuracy", claim(accuracy)), {**gap, "undecided": "report"}],
    }


def version(number: int, **changes: Any) -> VersionFacts:
    content = {
        "number": number, "image": f"sha256:{number}", "registered_us": NOW - 3 * DAY_US, "gate": gate(0.84),
        "params": {"lr": 0.1, "layers": 2}, "rows": 48_842, "manifest": "sha256:m", "commit": "c" * 40, "trials": 10,
    }  # fmt: skip
    return VersionFacts(**{**content, **changes})


def served(environment: str, number: int, share: int = 100) -> DeploymentRow:
    return DeploymentRow(
        "d", environment, "income", number, f"sha256:{number}", "c", share, NOW - DAY_US, None, "serving", ""
    )


RULES = EnvironmentSpec.model_validate({
    "version": 1, "name": "production", "approvals": {"needed": 2}, "traffic": {"ports": {"income": 8711}},
})  # fmt: skip
FULL = Report(
    product="income",
    now_us=NOW,
    environments=(RULES,),
    serving=(served("production", 2),),
    main="production",
    version=version(2),
    previous=version(1, gate=gate(0.82), params={"lr": 0.2, "layers": 2}, rows=48_843, manifest="sha256:old"),
    approvals=(
        ApprovalFacts("ada", "production", NOW, "read it"),
        ApprovalFacts("grace", "production", NOW, "tried it"),
    ),
    entry=MoveFacts(
        "production",
        2,
        "promote",
        "",
        NOW,
        (("gate-passed", "x"), ("evidence-loosened", "limit raised")),
        (),
        "sha256:2",
    ),
    moves=(MoveFacts("production", 2, "rollback", "bad answers", NOW, (), (), "sha256:2"),),
    consumers=(ConsumerLine("loan-desk", "1.4.0", ("production",)),),
    failed=(FailedLine("production", 3, NOW, "never ready"),),
    waiting=(WaitingLine("income@4 for production", "2 more approvers", "mlops approve"),),
    incidents=(OpenIncident("income-1", "income", 1, "<b>offer</b> too high", NOW),),
    erasures=OpenMatters((), (OpenErasure("income", "batched", NOW - DAY_US),)).count_erasures(NOW),
)
BARE = replace(
    FULL, serving=(), main=None, previous=None, approvals=(), entry=None, moves=(), consumers=(), failed=(), waiting=(),
    incidents=(), erasures=(),
)  # fmt: skip

SAID = {
    "who answers and why": "requests are answered by version 2",
    "how many limits were kept": "It kept 1 of the 2 things that are required of it; 1 could not be decided",
    "who approved": "Approved by Ada and Grace.",
    "the consumer": "loan-desk",
    "the approval's reason": "tried it",
    "a rule in plain words": "It kept what is required of it (part 2).",
    "the loosened rule": "Changed rule: limit raised.",
    "the other data": "48,843 rows before, 48,842 rows now",
    "the other setting": "lr 0.2 → 0.1",
    "rows that would decide": "About 5,000 more people&#39;s rows would decide it.",
    "what waits": "2 more approvers",
    "the way back": "Back to version 2, taken back by a person: bad answers",
    "the overdue request": "1 request to be forgotten is past the legal deadline.",
    "the failed version": "Version 3 was taken out of production",
}


@pytest.mark.parametrize("what", SAID)
def test_the_page_says(what: str) -> None:
    assert SAID[what] in re.sub(r"\s+", " ", render_report_page(FULL))


def test_rows_that_nobody_will_ever_have_are_not_counted() -> None:
    few = json.dumps(FULL.version.gate)
    many = replace(FULL, version=replace(FULL.version, gate=json.loads(few.replace("5000", "1338966"))))
    page = re.sub(r"\s+", " ", render_report_page(many))
    assert "1,338,966" not in page and "more than 1,000,000 people" in page


def test_the_page_loads_nothing_and_escapes_what_people_wrote() -> None:
    page = render_report_page(FULL)
    assert "<b>offer</b>" not in page
    assert "&lt;b&gt;offer" in page
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", page)


def test_the_gravest_comes_first() -> None:
    first, second, third = find_attention(FULL)
    assert "past the legal deadline" in first
    assert "Open incident" in second
    assert "taken out of production" in third
    assert list(find_attention(BARE)) == []


def test_a_limit_that_only_advises_and_is_not_kept_needs_attention() -> None:
    bad = claim(0.3, verdict="FAIL", direction="at most", threshold=0.05, name="sex")
    advice = check("couples", bad, verdict="FAIL", blocking=False, title="A couple gets one answer")
    looked = replace(BARE, version=version(1, gate={**gate(0.84), "checks": [advice]}))
    (said,) = find_attention(looked)
    assert "A couple gets one answer (measured sex: 30.0 %, asked at most 5.0 %)" in said
    (kept,) = looked.version.gate["checks"]
    assert not list(find_attention(replace(looked, version=version(1, gate={"checks": [{**kept, "blocking": True}]}))))


def test_of_several_requests_the_first_deadline_is_said() -> None:
    requests = tuple(OpenErasure("income", "fenced", NOW + days * DAY_US) for days in (1, 6))
    (said,) = find_attention(replace(BARE, erasures=OpenMatters((), requests).count_erasures(NOW)))
    assert said == "2 requests to be forgotten must be answered within 6 days, the first of them within 1."


def test_before_anything_serves_and_before_anything_is_released() -> None:
    assert "has not been put into service" in write_headline(BARE)
    never = replace(BARE, version=None)
    assert "No version of income has been released yet" in write_headline(never)
    for report in (BARE, never):
        assert "Nothing needs attention" in render_report_page(report)


def test_what_was_stopped_is_not_said_to_answer() -> None:
    stopped = replace(FULL, outages=("production",))
    assert "In production, nothing answers requests now: version 2 of income" in write_headline(stopped)
    assert "Nothing answers requests in production" in list(find_attention(stopped))[1]


def test_two_versions_side_by_side_are_both_named() -> None:
    text = write_headline(replace(FULL, serving=(served("production", 2, 90), served("production", 1, 10))))
    assert "version 2 (90 % of them) and version 1 (10 % of them)" in text


def test_better_and_worse_go_by_the_direction_of_the_limit() -> None:
    old, new = version(1, gate=gate(0.82)), version(2)
    accuracy, gap = compare_versions(old, new)
    assert (accuracy.before, accuracy.now, accuracy.is_better) == ("82.0 %", "84.0 %", True)
    assert gap.is_better is None
    worse = {**gate(0.84), "checks": [check("accuracy", claim(0.8, direction="at most"))]}
    (line,) = compare_versions(
        version(1, gate={**worse, "checks": [check("accuracy", claim(0.7))]}), version(2, gate=worse)
    )
    assert line.is_better is False


def test_like_is_compared_with_like_and_chance_is_no_difference() -> None:
    old = {**gate(0.82), "checks": [check("leak", claim(0.5, name="auc"), claim(0.01, name="tpr"))]}
    new = {**gate(0.82), "checks": [check("leak", claim(0.505, name="auc"), claim(0.02, name="tpr", p_good=0.4))]}
    (line,) = compare_versions(version(1, gate=old), version(2, gate=new))
    assert (line.before, line.now) == ("1.0 %", "2.0 %")
    (near,) = compare_versions(
        version(1, gate=gate(0.835)), version(2, gate={**gate(0.84), "checks": gate(0.84)["checks"][:1]})
    )
    assert near.is_better is None


def test_the_same_data_and_code_are_said_to_be_the_same() -> None:
    told = list(describe_differences(replace(FULL, previous=version(1), entry=None)))
    assert told == ["It was trained on the same data.", "The code is the same."]


def test_a_lost_gate_result_is_said() -> None:
    lost = replace(FULL, version=version(2, gate=None))
    assert "no longer kept" in render_report_page(lost)
    assert any("cannot show why" in text for text in find_attention(lost))
