"""Pure plans: what to do next, where to go back to, what changed, what is written."""

import contextlib
from dataclasses import replace

import pytest
from deploy_fakes import make_rules

from mlops.deploy.desired_state import DesiredState, PinnedConsumer, ReleaseSet, ServedVersion, parse_desired
from mlops.deploy.environment import SLOTS
from mlops.deploy.evidence_changes import compare_files, compare_policy
from mlops.deploy.going_back import decide_return, decide_rollback
from mlops.deploy.kubernetes import render_manifests, verify_manifest
from mlops.deploy.reconcile_plan import Check, Clear, Drain, Failure, Shift, SlotView, Start, plan_next
from mlops.deploy.sql_deployments import BarredRow, DeploymentRow
from mlops.errors import ProjectError, Refusal, ServingError


def image(number):
    return f"sha256:{number:064x}"


def version(number, share=100):
    return ServedVersion(number, image(number), image(1000 + number), share)


ONE, TWO, THREE = version(1), version(2), version(3)
MOVE = ReleaseSet("income", (TWO,), last_known_good=ONE)


def view(slot, number, weight=0, *, is_alive=True, is_checked=True, is_healthy=True, is_attached=None):
    return SlotView(
        slot,
        image(number),
        is_alive,
        is_checked,
        is_healthy,
        weight,
        weight > 0 if is_attached is None else is_attached,
    )


PLANS = {
    "nothing runs": (ReleaseSet("income", (ONE,)), [], Start(0, ONE, False, False)),
    "started, not checked": (ReleaseSet("income", (ONE,)), [view(0, 1, is_checked=False)], Check(0, ONE, False)),
    "checked, no traffic yet: all at once": (ReleaseSet("income", (ONE,)), [view(0, 1)], Shift({0: 100}, True)),
    "as desired": (ReleaseSet("income", (ONE,)), [view(0, 1, 100)], None),
    "a new version beside the old": (MOVE, [view(0, 1, 100)], Start(1, TWO, False, False)),
    "first step of traffic": (MOVE, [view(0, 1, 100), view(1, 2)], Shift({0: 90, 1: 10}, False)),
    "second step": (MOVE, [view(0, 1, 90), view(1, 2, 10)], Shift({0: 50, 1: 50}, False)),
    "last step": (MOVE, [view(0, 1, 50), view(1, 2, 50)], Shift({0: 0, 1: 100}, True)),
    "killed between steps": (MOVE, [view(0, 1, 70), view(1, 2, 30)], Shift({0: 50, 1: 50}, False)),
    "the old one is sick: all at once": (
        MOVE, [view(0, 1, 100, is_healthy=False), view(1, 2)], Shift({0: 0, 1: 100}, True),
    ),
    "the known good stays warm": (MOVE, [view(0, 1, 0), view(1, 2, 100)], None),
    "the known good is started to be warm": (MOVE, [view(1, 2, 100)], Start(0, ONE, False, True)),
    "what nobody wants is drained": (MOVE, [view(0, 1), view(1, 2, 100), view(2, 3)], Drain(2)),
    "what died is cleared first": (MOVE, [view(0, 1, 100, is_alive=False), view(1, 2)], Clear(0)),
    "a sick one is replaced in another slot": (
        ReleaseSet("income", (ONE,)), [view(0, 1, 100, is_healthy=False)], Start(1, ONE, True, False),
    ),
    "the replaced one goes after the traffic": (
        ReleaseSet("income", (ONE,)), [view(0, 1, 0, is_healthy=False), view(1, 1, 100)], Drain(0),
    ),
    "the proxy was started anew": (
        ReleaseSet("income", (ONE,)), [view(0, 1, 0, is_attached=False)], Shift({0: 100}, True),
    ),
    "no slot is free: the idlest goes": (
        MOVE, [view(0, 1, 100), *(view(slot, 3) for slot in range(1, SLOTS))], Drain(1),
    ),
    "two versions side by side": (
        ReleaseSet("income", (replace(TWO, share=20), replace(ONE, share=80))),
        [view(0, 1, 80), view(1, 2, 20)],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_the_next_action(case):
    release, observed, expected = PLANS[case]
    assert plan_next(release, observed, slots=SLOTS, steps=(10, 50, 100), keep_warm=True) == expected


def test_without_keep_warm_the_known_good_is_stopped():
    assert plan_next(MOVE, [view(0, 1), view(1, 2, 100)], slots=SLOTS, steps=(100,), keep_warm=False) == Drain(0)


def test_a_warm_version_that_cannot_start_holds_nothing_up():
    found = plan_next(
        MOVE, [view(1, 2, 100)], slots=SLOTS, steps=(100,), keep_warm=True, unstartable=frozenset({image(1)})
    )
    assert found is None


def row(number, outcome, since=0):
    return DeploymentRow(f"d{number}{since}", "production", "income", number, image(number), image(1000 + number), 100,
                         since, since + 1, outcome, "")  # fmt: skip


def barred(*numbers):
    return {image(number): BarredRow("production", image(number), 0, "x", "y") for number in numbers}


def test_a_rollback_goes_to_the_known_good_and_remembers_the_one_before():
    target = decide_rollback(
        ReleaseSet("income", (THREE,), last_known_good=TWO),
        leave=image(3),
        barred={},
        history=[row(3, "serving"), row(2, "good"), row(1, "good")],
    )
    assert target == ReleaseSet("income", (TWO,), last_known_good=ONE)


def test_a_rollback_passes_over_what_failed_or_is_barred():
    release = ReleaseSet("income", (THREE,), last_known_good=TWO)
    history = [row(3, "serving"), row(2, "good"), row(1, "good")]
    assert decide_rollback(release, leave=image(3), barred=barred(2), history=history).versions == (ONE,)
    only_failed = [row(3, "serving"), row(1, "failed")]
    answer = decide_rollback(replace(release, last_known_good=None), leave=image(3), barred={}, history=only_failed)
    assert isinstance(answer, Refusal)


def test_the_machine_returns_from_an_image_once_and_only_where_allowed():
    failure = Failure(TWO, "check", "wrong answer")
    manual = make_rules(rollback={"automatic": False})
    history = [row(1, "good")]
    assert isinstance(decide_return(MOVE, failure, rules=make_rules(), barred={}, history=history), ReleaseSet)
    assert isinstance(decide_return(MOVE, failure, rules=make_rules(), barred=barred(2), history=history), Refusal)
    assert isinstance(decide_return(MOVE, failure, rules=manual, barred={}, history=history), Refusal)


POLICY = "checks:\n  - {name: accuracy, minimum: 0.8, blocking: true}\n  - {name: gap, maximum: 0.1}\nalpha: 0.05\n"
POLICIES = {
    "the same": (POLICY, []),
    "a lower bound raised": (POLICY.replace("0.8", "0.9"), [True]),
    "a lower bound lowered": (POLICY.replace("0.8", "0.7"), [False]),
    "an upper bound lowered": (POLICY.replace("0.1}", "0.05}"), [True]),
    "an upper bound raised": (POLICY.replace("0.1}", "0.2}"), [False]),
    "a check no longer blocks": (POLICY.replace("true", "false"), [False]),
    "a check added": (POLICY.replace("alpha", "  - {name: loss, maximum: 1}\nalpha"), [True]),
    "a check removed": (POLICY.replace("  - {name: gap, maximum: 0.1}\n", ""), [False]),
    "a check renamed": (POLICY.replace("gap", "distance"), [True, False]),
    "another error rate": (POLICY.replace("0.05", "0.5"), [False]),
    "not YAML any more": ("{", [False]),
    "removed": (None, [False]),
}


@pytest.mark.parametrize("case", POLICIES)
def test_only_what_is_provably_stricter_counts_so(case):
    new, expected = POLICIES[case]
    found = compare_policy("p", old=POLICY, new=new, writers=("ada",))
    assert sorted(change.is_stricter for change in found) == sorted(expected), found


def test_cases_and_checks_may_only_be_added():
    found = compare_files("case", old={"a": b"1", "b": b"1"}, new={"b": b"2", "c": b"1"}, writers={"a": ("ada",)})
    assert [(change.path, change.is_stricter) for change in found] == [("a", False), ("b", False), ("c", True)]


STATE = DesiredState("production").with_product(
    ReleaseSet(
        "income", (replace(TWO, share=30), replace(ONE, share=70)), (PinnedConsumer("desk", "1.0", image(9)),), ONE
    )
)


def test_the_desired_state_has_one_spelling():
    assert parse_desired(STATE.render_yaml(), source="x") == STATE


EDITS = {
    "another number": ("number: 2", "number: 3"),
    "another share": ("share: 30", "share: 31"),
    "a comment": ("environment:", "# hello\nenvironment:"),
    "a field more": ("version: 1\n", "version: 1\nreplicas: 2\n"),
    "another version": ("version: 1\n", "version: 2\n"),
    "a list": (STATE.render_yaml(), "[]"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_desired_state_is_no_desired_state(case):
    old, new = EDITS[case]
    text = STATE.render_yaml()
    assert old in text
    changed = text.replace(old, new, 1)
    with contextlib.suppress(ProjectError):
        assert parse_desired(changed, source="x").digest != STATE.digest


@pytest.mark.parametrize("kind", ["plain", "kserve"])
def test_manifests_name_images_by_digest_and_fit_their_schemas(kind):
    manifests = render_manifests(STATE, make_rules(), kind=kind, registry="registry.example.org")
    text = str(manifests)
    assert f"registry.example.org/income@{image(2)}" in text
    if kind == "kserve":
        assert manifests[0]["spec"]["predictor"]["canaryTrafficPercent"] == 30
    else:
        assert [manifest["kind"] for manifest in manifests] == ["Deployment", "Deployment", "Service"]
        assert [manifest["spec"]["replicas"] for manifest in manifests[:2]] == [1, 3]


def test_a_pod_that_ends_answers_until_no_traffic_comes_and_is_not_killed_before():
    pod = render_manifests(STATE, make_rules(), kind="plain", registry="r")[0]["spec"]["template"]["spec"]
    given = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    leaving, finishing = int(given["DRAIN_SECONDS"]), int(given["STOP_TIMEOUT_SECONDS"])
    assert leaving > 0
    assert finishing == make_rules().traffic.drain
    assert pod["terminationGracePeriodSeconds"] > leaving + finishing


BREAKAGES = {
    "a tag instead of a digest": lambda pod: pod["containers"][0].update(image="registry/income:2"),
    "root": lambda pod: pod["securityContext"].update(runAsNonRoot=False),
    "a writable root": lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    "a field that does not exist": lambda pod: pod.update(hostNetwok=True),
}


@pytest.mark.parametrize("case", BREAKAGES)
def test_a_manifest_that_does_not_fit_is_refused(case):
    manifest = render_manifests(STATE, make_rules(), kind="plain", registry="r")[0]
    BREAKAGES[case](manifest["spec"]["template"]["spec"])
    with pytest.raises(ServingError, match="does not fit"):
        verify_manifest(manifest)
