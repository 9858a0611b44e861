"""The page and the terminal say the same, load nothing from outside, and are kept so that a change is noticed."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.errors import EvaluationError
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.model_card import render_card
from mlops.evaluation.planted import PLANTED, open_planted
from mlops.evaluation.policy import Policy
from mlops.evaluation.report import render_report, render_text
from mlops.evaluation.store import find_newest, keep_result, load_kept
from mlops.evaluation.verdicts import GateResult
from mlops.evaluation.wording import suggest_change
from mlops.places import Places
from mlops.specs import parse_spec

POLICY = """
version: 1
product: planted
favourable_class: granted
checks:
  - {name: acc, kind: accuracy, minimum: 0.99, title: <b>Right</b> answers, owner: me, reason: a reason of a sentence}
  - {name: gap, kind: equalized-odds-gap, by: [sex], maximum: 0.2, owner: me, reason: a reason of a sentence}
  - {name: cal, kind: calibration, maximum: 0.5, owner: me, reason: a reason of a sentence}
  - {name: mem, kind: membership, maximum_auc: 0.9, maximum_tpr: 0.9, owner: me, reason: a reason of a sentence}
  - name: lies
    kind: evasion
    minimum: 0.5
    attacks: [fgsm]
    rows: 100
    steps: 3
    changes: [{column: hours, up: 20, down: 20}]
    owner: me
    reason: a reason of a sentence
  - {name: grounds, kind: attribution, rows: 50, draws: 4, owner: me, reason: a reason of a sentence}
  - {name: lost, kind: accuracy, minimum: 0.1, by: [nobody], owner: me, reason: a reason of a sentence}
"""


@pytest.fixture(scope="module")
def result() -> GateResult:
    policy = parse_spec(POLICY, Policy, source="policy")
    hearing = open_planted(PLANTED[0], policy=policy, test_rows=800, train_rows=800)
    return judge_hearing(hearing, candidate="sha256:" + "c" * 64, clock=SystemClock(), inputs={})


def test_the_page_stands_alone_and_escapes_what_people_wrote(result: GateResult) -> None:
    page = render_report(result)
    assert not re.findall(r'(?:src|href)="?(?!data:)[^"> ]+', page)
    assert "<script" not in page
    assert "<b>Right</b>" not in page
    assert page.index("NO GO") < page.index("What would change it") < page.index("All checks at a glance")
    assert page.count("<svg") > 5
    assert not re.search(r"\d %", page), "a percent sign that may begin a line"


def test_who_approves_is_told_what_only_advises_and_how_far_it_is_from_its_limit() -> None:
    advisory = "blocking: false, owner: me, reason: a reason of a sentence"
    policy = parse_spec(
        "version: 1\nproduct: planted\nfavourable_class: granted\nchecks:\n"
        "  - {name: acc, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence}\n"
        f"  - {{name: gap, kind: selection-rate-gap, by: [area], maximum: 0.03, {advisory}}}\n"
        f"  - {{name: near, kind: functionality, given: {{hours: 40}}, answer: granted, maximum: 0.49, {advisory}}}\n"
        f"  - {{name: high, kind: accuracy, minimum: 0.99, {advisory}}}\n",
        Policy,
        source="policy",
    )
    hearing = open_planted(PLANTED[0], policy=policy, test_rows=800, train_rows=800)
    found = judge_hearing(hearing, candidate="sha256:" + "c" * 64, clock=SystemClock(), inputs={})
    text = render_text(found)
    assert "checks that only advise, 1 fails and 2 stay undecided: see below before you approve" in text.splitlines()[0]
    assert text.index("high (FAIL, advisory)") < text.index("near (UNDECIDED, advisory)")
    assert "Gap by area: " in text
    assert "Rows that are not answered granted with hours 40.0: 49.4 %, between" in text
    (judged,) = found.checks[2].claims
    near = "it must fall by about 3.3 points"  # of a share, so not by 3.3 %
    for rows, words in ((None, near), (2_000_000, "more than 1,000,000"), (9, "About 9 more")):
        claim = dataclasses.replace(judged.claim, rows_needed=rows)
        check = dataclasses.replace(found.checks[2], claims=(dataclasses.replace(judged, claim=claim),))
        assert words in suggest_change(check)


def test_the_terminal_says_what_the_page_says(result: GateResult) -> None:
    text = render_text(result)
    assert text.startswith("NO GO (FAIL): 1 check is shown to be violated and 1 check could not be decided.")
    for check in result.checks:
        assert check.title in text
    assert result.digest in text


def test_each_plot_stands_beside_its_check(result: GateResult) -> None:
    page = render_report(result)
    for label in (
        "rates by group",
        "calibration",
        "ROC of membership",
        "robust accuracy over the size",
        "shares: merit",
    ):
        assert f'aria-label="{label}' in page, label


def test_robust_accuracy_never_rises_with_the_size_of_the_lie(result: GateResult) -> None:
    points = next(check for check in result.checks if check.name == "lies").details["over_radius"]
    shares = [point["accuracy"] for point in points]
    assert [point["scale"] for point in points] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_the_model_card_has_the_verdict_every_check_and_what_falls_short(result: GateResult) -> None:
    card = render_card(result)
    assert card.startswith("# Model card: planted\n\n**FAIL**")
    assert "merit (number), hours (number), sector (category)" in card
    assert all(check.title in card for check in result.checks)
    caveats = card.partition("## Caveats")[2]
    assert "Right</b> answers is FAIL" in caveats
    assert "cal is PASS" not in caveats


def test_a_kept_result_is_found_and_a_changed_one_is_refused(result: GateResult, tmp_path: Path) -> None:
    places = Places(tmp_path)
    folder = keep_result(places, result, judged_us=1_800_000_000_000_000)
    assert find_newest(places, product="planted") == folder
    assert load_kept(folder)["verdict"] == "FAIL"
    assert (folder / "gate.txt").read_text() == render_text(result) + "\n"
    assert (folder / "model_card.md").read_text() == render_card(result)
    content = json.loads((folder / "gate.json").read_text())
    content["verdict"] = "PASS"
    (folder / "gate.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match="was changed"):
        load_kept(folder)


def test_a_result_that_is_judged_again_keeps_the_files_that_were_signed(result: GateResult, tmp_path: Path) -> None:
    places = Places(tmp_path)
    folder = keep_result(places, result, judged_us=1)
    signed = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = keep_result(places, dataclasses.replace(result, inputs={"rows": "b"}), judged_us=2)
    assert other != folder
    for path in other.iterdir():
        os.utime(path, (1_000, 1_000))
    slower = dataclasses.replace(
        result, checks=tuple(dataclasses.replace(check, seconds=check.seconds + 1) for check in result.checks)
    )
    assert keep_result(places, slower, judged_us=3) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == signed
    assert find_newest(places, product="planted") == folder
    (folder / "gate.json").write_text("{}")
    keep_result(places, slower, judged_us=4)
    assert load_kept(folder)["judged_us"] == 4
