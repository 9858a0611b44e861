"""Laws of the deploy room: people are counted, plans end, traffic never leaves nobody."""

import os
from dataclasses import replace

from deploy_fakes import make_rules
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops.clock import SECOND_US
from mlops.deploy.approval import Approval, SignedApproval
from mlops.deploy.desired_state import DesiredState, ReleaseSet, ServedVersion, parse_desired
from mlops.deploy.environment import SLOTS
from mlops.deploy.promotion import Checklist, PromotionFacts, Release, decide_promotion
from mlops.deploy.reconcile_plan import Check, Clear, Drain, Shift, SlotView, Start, plan_next

EXAMPLES = settings(max_examples=150 * int(os.environ.get("MLOPS_TEST_SCALE", "1")), deadline=None)
NOW_US = 1_800_000_000 * SECOND_US
IMAGE = "sha256:" + "a" * 64
FACTS = PromotionFacts(
    release=Release("income", 3, IMAGE, IMAGE, IMAGE, IMAGE, None),
    gate_verdict="PASS", probe_verdict="PASS", chain_problems=(), authors=frozenset(), approvals=(), consumers=(),
    changes=(), barred=None, served_well_in=frozenset(),
)  # fmt: skip
people = st.sampled_from(["ada", "bob", "cat", "dan"])


@st.composite
def approvals(draw):
    person = draw(people)
    image = draw(st.sampled_from([IMAGE, IMAGE, IMAGE, "sha256:" + "b" * 64]))
    approval = Approval(
        "x",
        "promotion",
        "income",
        "production",
        3,
        image,
        IMAGE,
        NOW_US - draw(st.integers(0, 9)) * 86_400 * SECOND_US,
        "y",
    )
    problem = draw(st.sampled_from([None, None, None, ("approval-key-unknown", "z")]))
    return SignedApproval(approval, person, f"{person}-{draw(st.integers(0, 2))}", problem)


@EXAMPLES
@given(st.lists(approvals(), max_size=8), st.frozensets(people), st.integers(0, 4))
def test_k_of_n_counts_distinct_people_who_are_no_authors(found, authors, needed):
    rules = make_rules(approvals={"needed": needed, "valid_for": "7d"})
    answer = decide_promotion(replace(FACTS, approvals=tuple(found), authors=authors), rules, now_us=NOW_US)
    good = {
        signed.person
        for signed in found
        if signed.problem is None
        and signed.approval.image == IMAGE
        and NOW_US - signed.approval.issued_us < 7 * 86_400 * SECOND_US
        and signed.person not in authors
    }
    assert isinstance(answer, Checklist) == (len(good) >= needed)


@EXAMPLES
@given(st.lists(approvals(), max_size=6), approvals())
def test_one_more_approval_never_harms(found, extra):
    rules = make_rules(approvals={"needed": 2})
    before = decide_promotion(replace(FACTS, approvals=tuple(found)), rules, now_us=NOW_US)
    after = decide_promotion(replace(FACTS, approvals=(*found, extra)), rules, now_us=NOW_US)
    assert isinstance(after, Checklist) or not isinstance(before, Checklist)


def version(number, share=100):
    return ServedVersion(number, f"sha256:{number:064x}", f"sha256:{number + 1000:064x}", share)


@st.composite
def release_sets(draw):
    numbers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True))
    share = draw(st.integers(1, 99)) if len(numbers) == 2 else 100
    versions = tuple(version(number, share if index == 0 else 100 - share) for index, number in enumerate(numbers))
    good = draw(st.none() | st.integers(1, 4).map(version))
    return ReleaseSet("income", versions, last_known_good=good)


@st.composite
def slot_views(draw):
    slots = draw(st.lists(st.integers(0, SLOTS - 1), max_size=SLOTS, unique=True))
    found = []
    left = 100
    for slot in sorted(slots):
        is_alive = draw(st.integers(0, 4)) > 0
        is_checked = is_alive and draw(st.booleans())
        weight = draw(st.sampled_from([0, left])) if is_checked else 0
        left -= weight
        found.append(SlotView(slot, version(draw(st.integers(1, 4))).image, is_alive, is_checked,
                              draw(st.integers(0, 4)) > 0, weight, weight > 0 or draw(st.booleans())))  # fmt: skip
    return found


def apply(action, views):
    """The world does what it was told, and what was started is fit."""
    by_slot = {view.slot: view for view in views}
    if isinstance(action, Clear | Drain):
        del by_slot[action.slot]
    elif isinstance(action, Start):
        assert action.slot not in by_slot
        by_slot[action.slot] = SlotView(action.slot, action.version.image, True, False, True, 0, False)
    elif isinstance(action, Check):
        by_slot[action.slot] = replace(by_slot[action.slot], is_checked=True)
    elif isinstance(action, Shift):
        for slot, weight in action.weights.items():
            is_attached = by_slot[slot].is_attached or weight > 0
            by_slot[slot] = replace(by_slot[slot], weight=weight, is_attached=is_attached)
    return [by_slot[slot] for slot in sorted(by_slot)]


@EXAMPLES
@given(release_sets(), slot_views(), st.booleans(), st.sampled_from([(100,), (10, 50, 100), (1, 99, 100)]))
def test_every_plan_ends_with_the_desired_shares_and_never_takes_traffic_from_the_last_fit_one(
    release, views, keep_warm, steps
):
    was_served = False
    for _ in range(60):
        action = plan_next(release, views, slots=SLOTS, steps=steps, keep_warm=keep_warm)
        if action is None:
            break
        if isinstance(action, Shift):
            assert sum(action.weights.values()) == 100
            by_slot = {view.slot: view for view in views}
            assert all(
                by_slot[slot].is_fit or by_slot[slot].weight for slot, weight in action.weights.items() if weight
            )
        views = apply(action, views)
        is_served = any(view.is_fit and view.weight for view in views)
        assert is_served or not was_served, action
        was_served = is_served
    assert action is None, action
    shares = {view.image: view.weight for view in views if view.weight}
    assert shares == {entry.image: entry.share for entry in release.versions}
    assert all(view.is_fit for view in views)


@EXAMPLES
@given(release_sets())
def test_a_desired_state_survives_its_file(release):
    state = DesiredState("production").with_product(release)
    assert parse_desired(state.render_yaml(), source="x") == state
