"""The policy file: every problem at once, and thresholds with reasons."""

from pathlib import Path

import pytest

from mlops.errors import ProjectError
from mlops.evaluation.policy import Policy, load_policy
from mlops.specs import parse_spec

INCOME = Path(__file__).parents[3] / "evaluation" / "income.yaml"
HEAD = "version: 1\nproduct: p\nfavourable_class: y\nchecks:\n"


def test_the_policy_of_income_is_valid_and_blocks_what_the_company_asked_for() -> None:
    policy = load_policy(INCOME)
    rules = {rule.name: rule for rule in policy.checks}
    odds, selection = rules["equalized-odds-by-sex"], rules["selection-rate-by-sex"]
    assert odds.kind == "equalized-odds-gap"
    assert selection.kind == "selection-rate-gap"
    assert (odds.maximum, odds.blocking, odds.undecided) == (0.10, True, "block")
    assert (selection.maximum, selection.blocking, selection.undecided) == (0.15, True, "block")
    for name in ("equalized-odds-by-race", "selection-rate-by-race", "equalized-odds-by-sex-and-race"):
        assert rules[name].blocking
        assert rules[name].undecided == "report"
        assert rules[name].undecided_reason


WRONG = {
    "a rule without a reason": ("  - {name: a, kind: loss, maximum: 1, owner: me}", "reason"),
    "a reason that is no sentence": ("  - {name: a, kind: loss, maximum: 1, owner: me, reason: because}", "reason"),
    "an unknown kind": ("  - {name: a, kind: vibes, owner: me, reason: a reason of a sentence}", "'vibes' is none of"),
    "report without its reason": (
        "  - {name: a, kind: loss, maximum: 1, owner: me, reason: a reason of a sentence, undecided: report}",
        "undecided_reason",
    ),
    "a change that changes nothing": (
        "  - {name: a, kind: evasion, minimum: 0.5, owner: me, reason: a reason of a sentence, attacks: [fgsm], "
        "changes: [{column: hours}]}",
        "nothing to change",
    ),
    "two checks of one name": (
        "  - {name: a, kind: loss, maximum: 1, owner: me, reason: a reason of a sentence}\n"
        "  - {name: a, kind: loss, maximum: 2, owner: me, reason: a reason of a sentence}",
        "named twice",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_policy_is_refused_with_its_field(case: str) -> None:
    text, word = WRONG[case]
    with pytest.raises(ProjectError) as caught:
        parse_spec(HEAD + text, Policy, source="p.yaml")
    assert any(word in item for item in caught.value.items), caught.value.items


def test_the_digest_ignores_comments_and_sees_thresholds() -> None:
    text = HEAD + "  - {name: a, kind: loss, maximum: 1, owner: me, reason: a reason of a sentence}"
    first = parse_spec(text, Policy, source="p").digest
    assert parse_spec(text + "\n# a remark\n", Policy, source="p").digest == first
    assert parse_spec(text.replace("maximum: 1", "maximum: 2"), Policy, source="p").digest != first
