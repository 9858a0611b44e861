"""The decision whether a version may enter an environment, rule by rule."""

from dataclasses import replace

import pytest
from deploy_fakes import make_rules

from mlops.clock import DAY_US, SECOND_US
from mlops.deploy.approval import Approval, SignedApproval
from mlops.deploy.evidence_changes import EvidenceChange
from mlops.deploy.promotion import Checklist, ConsumerFact, PromotionFacts, Release, decide_promotion, examine_promotion
from mlops.errors import Refusal

NOW_US = 1_800_000_000 * SECOND_US
IMAGE, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
RELEASE = Release("income", 3, IMAGE, "sha256:" + "c" * 64, "sha256:" + "d" * 64, "sha256:" + "e" * 64, "f" * 40)
FACTS = PromotionFacts(
    release=RELEASE,
    gate_verdict="PASS",
    probe_verdict="PASS",
    chain_problems=(),
    authors=frozenset({"zoe"}),
    approvals=(),
    consumers=(),
    changes=(),
    barred=None,
    served_well_in=frozenset(),
)


def rules(needed=2, **changes):
    return make_rules(approvals={"needed": needed, "valid_for": "7d"}, **changes)


def yes(person, *, key=None, problem=None, **changes):
    approval = Approval(
        approval_id=f"approval-{person}", purpose="promotion", product="income", environment="production", number=3,
        image=IMAGE, gate=RELEASE.gate, issued_us=NOW_US - DAY_US, reason="read the report",
    )  # fmt: skip
    return SignedApproval(replace(approval, **changes), person, key or f"ed25519:{person}", problem)


def codes(answer):
    return sorted({reason.code for reason in answer.reasons}) if isinstance(answer, Refusal) else []


APPROVALS = {
    "two people": ((yes("ada"), yes("bob")), []),
    "one person of two": ((yes("ada"),), ["not-approvals"]),
    "nobody": ((), ["not-approvals"]),
    "one person twice with one key": ((yes("ada"), yes("ada")), ["approval-repeated", "not-approvals"]),
    "one person twice with two keys": (
        (yes("ada", key="ed25519:1"), yes("ada", key="ed25519:2")),
        ["approval-repeated", "not-approvals"],
    ),
    "one key under two names": (
        (yes("ada", key="ed25519:1"), yes("bob", key="ed25519:1")),
        ["approval-repeated", "not-approvals"],
    ),
    "the author alone": ((yes("zoe"),), ["approval-by-author", "not-approvals"]),
    "the author and one other": ((yes("zoe"), yes("ada")), ["approval-by-author", "not-approvals"]),
    "the author beside two others": ((yes("zoe"), yes("ada"), yes("bob")), []),
    "for another image": ((yes("ada", image=OTHER), yes("bob")), ["approval-for-other-version", "not-approvals"]),
    "for another gate result": ((yes("ada", gate=OTHER), yes("bob")), ["approval-for-other-version", "not-approvals"]),
    "for another environment": (
        (yes("ada", environment="staging"), yes("bob")),
        ["approval-elsewhere", "not-approvals"],
    ),
    "for another product": ((yes("ada", product="digits"), yes("bob")), ["approval-elsewhere", "not-approvals"]),
    "expired": ((yes("ada", issued_us=NOW_US - 7 * DAY_US), yes("bob")), ["approval-expired", "not-approvals"]),
    "the last microsecond of its time": ((yes("ada", issued_us=NOW_US - 7 * DAY_US + 1), yes("bob")), []),
    "from the future": (
        (yes("ada", issued_us=NOW_US + DAY_US), yes("bob")),
        ["approval-from-the-future", "not-approvals"],
    ),
    "standing, for a promotion by hand": (
        (yes("ada", purpose="erasure"), yes("bob")),
        ["approval-other-purpose", "not-approvals"],
    ),
    "with a flaw in key or signature": (
        (yes("ada", problem=("approval-key-expired", "…")), yes("bob")),
        ["approval-key-expired", "not-approvals"],
    ),
}


@pytest.mark.parametrize("case", APPROVALS)
def test_approvals_count_people(case):
    approvals, expected = APPROVALS[case]
    answer = decide_promotion(replace(FACTS, approvals=approvals), rules(), now_us=NOW_US)
    assert codes(answer) == expected


TWO = (yes("ada"), yes("bob"))
RULES = {
    "the gate failed": ({"gate_verdict": "FAIL"}, {}, ["not-gate-passed"]),
    "the gate never ran": ({"gate_verdict": "missing"}, {}, ["not-gate-passed"]),
    "the probe failed": ({"probe_verdict": "FAIL"}, {}, ["not-image-probed"]),
    "a broken link": ({"chain_problems": ("image: blob changed",)}, {}, ["chain-broken"]),
    "an open erasure": ({"fences": ("trained on a person who withdrew",)}, {}, ["fenced"]),
    "staging was left out": ({}, {"after": "staging"}, ["not-earlier-environment"]),
    "it served well in staging": ({"served_well_in": frozenset({"staging"})}, {"after": "staging"}, []),
    "a consumer's contract is broken": (
        {"consumers": (ConsumerFact("desk", "1", ("reads x, which the model does not answer",)),)},
        {},
        ["consumer-broken"],
    ),
    "a consumer's contract is kept": ({"consumers": (ConsumerFact("desk", "1", ()),)}, {}, []),
    "it failed here after the approvals": (
        {"barred": (NOW_US, "died")},
        {},
        ["approval-before-failure", "barred", "not-approvals"],
    ),
    "it failed here before the approvals": ({"barred": (NOW_US - 2 * DAY_US, "died")}, {}, []),
    "a check was loosened by the author": (
        {"changes": (EvidenceChange("policy", "minimum lowered", is_stricter=False, writers=("zoe",)),)},
        {},
        [],
    ),
    "a check was loosened by both approvers": (
        {"changes": (EvidenceChange("policy", "minimum lowered", is_stricter=False, writers=("ada", "bob")),)},
        {},
        ["evidence-loosened"],
    ),
    "a check was loosened by nobody known": (
        {"changes": (EvidenceChange("policy", "minimum lowered", is_stricter=False, writers=()),)},
        {},
        ["evidence-loosened"],
    ),
    "a check was made stricter by both approvers": (
        {"changes": (EvidenceChange("policy", "minimum raised", is_stricter=True, writers=("ada", "bob")),)},
        {},
        [],
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_every_rule_can_refuse(case):
    facts, changes, expected = RULES[case]
    answer = decide_promotion(replace(FACTS, approvals=TWO, **facts), rules(**changes), now_us=NOW_US)
    assert codes(answer) == expected


def test_every_ground_is_named_at_once():
    facts = replace(FACTS, gate_verdict="FAIL", chain_problems=("x", "y"), fences=("z",))
    assert codes(decide_promotion(facts, rules(), now_us=NOW_US)) == [
        "chain-broken", "fenced", "not-approvals", "not-gate-passed",
    ]  # fmt: skip


def test_standing_approvals_admit_a_retrain_only_where_the_environment_says_so():
    standing = tuple(
        yes(name, purpose="erasure", image=OTHER, issued_us=NOW_US - 90 * DAY_US) for name in ("ada", "bob")
    )
    facts = replace(FACTS, approvals=standing)
    automatic = rules(erasure="automatic")
    assert isinstance(decide_promotion(facts, automatic, now_us=NOW_US, cause="erasure"), Checklist)
    assert isinstance(decide_promotion(facts, automatic, now_us=NOW_US), Refusal)
    assert isinstance(decide_promotion(facts, rules(), now_us=NOW_US, cause="erasure"), Refusal)


def test_the_checklist_shows_kept_rules_too():
    checklist = examine_promotion(replace(FACTS, approvals=TWO), rules(), now_us=NOW_US)
    assert checklist.refusal is None
    assert checklist.approvers == ("ada", "bob")
    assert [item.code for item in checklist.items] == [
        "gate-passed", "image-probed", "chain-verified", "no-fence", "not-barred", "approvals",
    ]  # fmt: skip
