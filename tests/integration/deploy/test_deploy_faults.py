"""Bad input and faults: refused or converged, never half-way, never serving something unverified."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_fakes import git, make_rules

from mlops.deploy import sql_deployments, traffic_switch
from mlops.deploy.instance_check import is_ready
from mlops.deploy.promoting import approve, promote
from mlops.deploy.promotion_facts import find_release
from mlops.deploy.runtimes import choose_runtime
from mlops.deploy.state_keeper import load_desired_state, verify_desired
from mlops.deploy.withdrawal import roll_back
from mlops.errors import EnvironmentFault, ProvenanceError, Refusal
from mlops.provenance.digest import hex_of
from mlops.provenance.git_repository import open_repository
from mlops.provenance.keys import load_key

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]
DESIRED = "deploy/desired/production.yaml"


def codes(answer):
    return sorted({reason.code for reason in answer.reasons})


def serve(world, number, **changes):
    result = promote(world.site, world.rules, f"income@{number}")
    assert not isinstance(result, Refusal), result.render_text()
    outcome = world.reconciler(**changes).run_once()
    assert not isinstance(outcome, Refusal), outcome.render_text()
    return outcome


def sign(world, number, *keys):
    for key in keys:
        approve(
            world.site, world.rules, f"income@{number}", key=load_key(world.site.places.keys_folder, key), reason="read"
        )


# -- promotion -----------------------------------------------------------------------------------------------------


def test_approvals_from_key_files_to_a_signed_commit(world):
    world = world.with_rules(approvals=make_rules(approvals={"needed": 2}).approvals)
    world.add_person("ada", keys=2)
    world.add_person("bob")
    world.add_person("zoe")
    world.commit("People")
    world.release(1)
    sign(world, 1, "ada-0", "ada-1", "zoe-0")
    refused = promote(world.site, world.rules, "income@1")
    assert codes(refused) == ["approval-by-author", "approval-repeated", "not-approvals"]
    assert not (world.root / DESIRED).exists()
    sign(world, 1, "bob-0")
    done = promote(world.site, world.rules, "income@1")
    assert done.checklist.approvers == ("ada", "bob")
    assert done.written.commit_hash == git(world.root, "rev-parse", "HEAD")
    assert git(world.root, "show", "--stat", "--format=%an", "HEAD").split()[:3] == ["mlops", DESIRED, "|"]
    again = promote(world.site, world.rules, "income@1")
    assert again.written is None
    assert git(world.root, "rev-parse", "HEAD") == done.written.commit_hash


def flip(path, position=0):
    blob = bytearray(path.read_bytes())
    blob[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(blob))


def image_blobs(world, image):
    folder = world.site.places.images / "blobs" / "sha256"
    return [folder / hex_of(image), *(path for path in folder.iterdir() if path.name != hex_of(image))]


def tamper_row(world, table, column, old, new):
    with world.site.ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET {column} = replace({column}, '{old}', '{new}')")


TAMPERINGS = {
    "a byte of the image's manifest": lambda world, image: flip(image_blobs(world, image)[0]),
    "a byte of a layer": lambda world, image: [flip(path) for path in image_blobs(world, image)[1:]],
    "a byte of the candidate": lambda world, image: flip(next(world.site.places.candidates.glob("*/model.onnx"))),
    "a byte of the gate's result": lambda world, image: [
        flip(path, 3) for path in world.site.places.evidence.glob("*/*.json")
    ],
    "a byte of an envelope": lambda world, image: tamper_row(
        world, "steps", "envelope", 'payload":"ey', 'payload":"fy'
    ),
    "a verdict in the ledger": lambda world, image: tamper_row(world, "steps", "facts", "PASS", "pass"),
    "an edge in the ledger": lambda world, image: tamper_row(world, "edges", "digest", image, "sha256:" + "0" * 64),
    "an event in the ledger": lambda world, image: tamper_row(world, "events", "body", "gate", "gata"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_what_was_tampered_with_after_the_gate_is_not_promoted(what, world):
    image = world.release(1)
    assert not isinstance(promote(world.site, world.rules, "income@1", is_dry_run=True), Refusal)
    TAMPERINGS[what](world, image)
    try:
        answer = promote(world.site, world.rules, "income@1")
    except ProvenanceError:
        return  # the version itself is not to be found any more
    assert isinstance(answer, Refusal), what
    assert not (world.root / DESIRED).exists()


def test_an_image_tampered_after_promotion_does_not_start(world):
    world.release(1)
    image = world.release(2)
    serve(world, 1)
    promote(world.site, world.rules, "income@2")
    flip(image_blobs(world, image)[0])
    outcome = world.reconciler().run_once()
    assert [reason.code for reason in outcome.reasons] == ["image-changed"]
    assert image not in world.runtime.started
    assert {view.digest for view in world.runtime.list_instances()} == {find(world, 1).image}, "the old one serves on"


def find(world, number):
    with world.site.ledger.read() as connection:
        return find_release(connection, f"income@{number}")


def test_a_version_that_failed_the_gate_or_does_not_exist(world):
    world.release(1, verdict="FAIL")
    assert codes(promote(world.site, world.rules, "income@1")) == ["not-gate-passed"]
    with pytest.raises(ProvenanceError, match="there is no income@7"):
        promote(world.site, world.rules, "income@7")
    assert codes(promote(world.site, world.rules, "digits@1")) == ["no-port"]


def test_a_consumer_whose_contract_would_break_is_named(world):
    world.write(
        "deploy/consumers/desk.yaml",
        "{version: 1, service: desk, release: '2.0', product: income, environments: [production],"
        " inputs: [{name: age, dtype: float32}], outputs: [{name: score}]}",
    )
    world.release(1)
    refused = promote(world.site, world.rules, "income@1")
    assert codes(refused) == ["consumer-broken"]
    assert len(refused.reasons) == 2


def test_a_loosened_check_needs_an_approver_who_did_not_write_it(world):
    world = world.with_rules(approvals=make_rules(approvals={"needed": 1}).approvals)
    world.add_person("ada")
    world.commit("People")
    world.release(1)
    sign(world, 1, "ada-0")
    serve(world, 1)
    world.write("evaluation/income.yaml", (world.root / "evaluation/income.yaml").read_text().replace("0.8", "0.7"))
    world.commit("Loosen", author="ada@example.org")
    world.write("training/income.py", "# by zoe\n")
    world.commit("Train", author="zoe@example.org")
    world.release(2)
    sign(world, 2, "ada-0")
    assert "evidence-loosened" in codes(promote(world.site, world.rules, "income@2"))


# -- desired state -------------------------------------------------------------------------------------------------


def edit(world, old, new):
    world.write(DESIRED, (world.root / DESIRED).read_text().replace(old, new))


EDITS = {
    "a number changed by hand": lambda world: edit(world, "share: 100", "share: 99"),
    "changed and committed by a person": lambda world: (edit(world, "number: 2", "number: 1"), world.commit("By hand")),
    "the older state, committed by a person": lambda world: (
        git(world.root, "checkout", "HEAD~1", "--", DESIRED),
        world.commit("Back"),
    ),
    "removed": lambda world: (world.root / DESIRED).unlink(),
    "in a commit nobody signed": lambda world: git(world.root, "commit", "-q", "--amend", "-m", "Mine"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_a_desired_state_edited_by_hand_is_refused_and_changes_nothing(what, world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    before = world.runtime.list_instances()
    EDITS[what](world)
    outcome = world.reconciler().run_once()
    assert isinstance(outcome, Refusal), what
    assert outcome.reasons[0].code.startswith("desired-state-"), outcome.render_text()
    assert world.runtime.list_instances() == before


def test_a_rollback_moves_traffic_even_when_git_refuses(world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    world.write(DESIRED, "by hand")
    folder = world.site.product_folder("production", "income")
    way = traffic_switch.switch_back(folder)
    assert isinstance(roll_back(world.site, world.rules, "income", leave=way["from_image"], why="x"), Refusal)
    git(world.root, "checkout", "--", DESIRED)
    assert not world.reconciler().run_once().reasons
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1
    assert traffic_switch.read_hold(folder) is None


# -- running -------------------------------------------------------------------------------------------------------

UNFIT = {
    "dies at start": ({"dies": True}, "died while starting; it said: the stub dies as told"),
    "is never ready": ({"never_ready": True}, "not ready within"),
    "answers wrongly": ({"wrong_by": 1e-3}, "differs by 0.001"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_unfit_version_gets_no_traffic_and_is_recorded(what, world):
    stub, text = UNFIT[what]
    health = world.rules.health.model_copy(update={"start_within": 1.0})
    world = world.with_rules(health=health)
    world.release(1)
    bad = world.release(2, **stub)
    serve(world, 1)
    outcome = serve(world, 2)
    assert text in outcome.reasons[0].text
    with world.site.ledger.read() as connection:
        assert text in sql_deployments.load_barred(connection, "production")[bad].why
        rows = sql_deployments.load_deployments(connection, environment="production", is_current=True)
        committed = sql_deployments.load_desired(connection, "production")
    assert [row.number for row in rows] == [1]
    assert (committed.cause, committed.commit_hash) == ("automatic-return", git(world.root, "rev-parse", "HEAD"))
    assert not world.reconciler().run_once().reasons, "it stays there"


def test_the_first_version_that_is_unfit_leaves_nothing_serving(world):
    world.release(1, dies=True)
    serve(world, 1)
    assert world.runtime.list_instances() == ()
    assert codes(world.reconciler().run_once()) == ["no-known-good"]


def test_an_instance_that_dies_is_replaced_and_repeated_death_goes_back(world):
    world.release(1)
    second = world.release(2)
    serve(world, 1)
    serve(world, 2)
    reconciler = world.reconciler()
    for _ in range(2):
        (victim,) = [one for one in world.runtime.list_instances() if one.digest == second]
        os.kill(int(victim.identity.split(":")[0]), signal.SIGKILL)
        outcome = reconciler.run_once()
    assert "was lost 2 times" in outcome.reasons[0].text
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1


def test_an_instance_that_turns_unhealthy_is_replaced_by_a_fresh_one(world):
    image = world.release(1)
    serve(world, 1)
    (sick,) = world.runtime.list_instances()
    (sick.socket.parent / "unhealthy").touch()
    outcome = world.reconciler().run_once()
    assert not outcome.reasons
    (fresh,) = world.runtime.list_instances()
    assert (fresh.digest, fresh.identity != sick.identity, is_ready(fresh.socket)) == (image, True, True)


def test_a_dead_proxy_is_started_again(world):
    world.release(1)
    serve(world, 1)
    proxy = world.reconciler().table_of("income").proxy
    os.kill(proxy.find_pid(), signal.SIGKILL)
    assert not world.reconciler().run_once().reasons
    assert proxy.load_traffic()[0].weight == 100


def test_a_port_in_use_is_one_sentence(world):
    world.release(1)
    promote(world.site, world.rules, "income@1")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", world.rules.traffic.ports["income"]))
        holder.listen()
        with pytest.raises(EnvironmentFault, match=r"port \d+ of income in production is in use"):
            world.reconciler().run_once()


def test_missing_tools_are_named_with_the_install_command(monkeypatch, world, tmp_path):
    world.release(1)
    promote(world.site, world.rules, "income@1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault) as caught:
        choose_runtime(("podman", "bubblewrap"), state=tmp_path)
    assert "apt-get install podman runc" in caught.value.hint


def test_two_reconcilers_do_not_both_act(world):
    world.release(1)
    promote(world.site, world.rules, "income@1")
    answers = []
    world.reconciler(hook=lambda name: answers.append(world.reconciler().run_once())).run_once()
    assert answers
    assert all(codes(answer) == ["reconciler-at-work"] for answer in answers)


# -- kill -9 at each step ------------------------------------------------------------------------------------------

RECONCILE_STEPS = ["before-start", "before-check", "before-shift", "before-drain"]
PROMOTE_STEPS = ["before-step", "before-decision", "before-commit", "before-mark"]
RETURN_STEPS = [
    "after-bar",
    *(pytest.param(step, marks=pytest.mark.slow) for step in ("before-step", "before-decision", "before-mark")),
    "before-commit",
]


class Killed(BaseException):
    """The process ended here."""


def killer(step, *, times=1):
    left = [times]

    def hook(name):
        if name == step:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    return hook


@pytest.mark.parametrize("step", PROMOTE_STEPS)
def test_a_promotion_killed_at_any_step_is_not_half_done(step, world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    with pytest.raises(Killed):
        promote(world.site, world.rules, "income@2", hook=killer(step))
    assert not isinstance(verify_desired(world.site, "production"), Refusal)
    assert not isinstance(promote(world.site, world.rules, "income@2"), Refusal)
    assert not world.reconciler().run_once().reasons
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 2
    assert open_repository(world.root).dirty_paths() == ()


@pytest.mark.parametrize("step", RECONCILE_STEPS)
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_reconcile_killed_at_any_step_converges(step, times, world):
    for number in (1, 2, 3):
        world.release(number)
    serve(world, 1)
    serve(world, 2)
    promote(world.site, world.rules, "income@3")
    with contextlib.suppress(Killed):
        world.reconciler(hook=killer(step, times=times)).run_once()
    assert not world.reconciler().run_once().reasons
    served = {one.digest for one in world.runtime.list_instances()}
    assert served == {find(world, 3).image, find(world, 2).image}
    traffic = world.reconciler().table_of("income").proxy.load_traffic()
    assert sorted(slot.weight for slot in traffic.values() if slot.is_attached and slot.weight) == [100]


@pytest.mark.parametrize("step", RETURN_STEPS)
def test_an_automatic_return_killed_at_any_step_still_returns(step, world):
    world.release(1)
    world.release(2, wrong_by=1.0)
    serve(world, 1)
    promote(world.site, world.rules, "income@2")
    with pytest.raises(Killed):
        world.reconciler(hook=killer(step)).run_once()
    world.reconciler().run_once()
    assert not world.reconciler().run_once().reasons
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1


@pytest.mark.parametrize("step", RETURN_STEPS)
def test_a_rollback_killed_at_any_step_is_carried_through(step, world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    way = traffic_switch.switch_back(world.site.product_folder("production", "income"))
    with pytest.raises(Killed):
        roll_back(world.site, world.rules, "income", leave=way["from_image"], why="x", hook=killer(step))
    assert not world.reconciler().run_once().reasons
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1
    assert traffic_switch.read_hold(world.site.product_folder("production", "income")) is None


_PROMOTE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import deploy_fakes
from mlops.deploy.promoting import promote
world = deploy_fakes.open_world(Path(sys.argv[2]), deploy_fakes.make_rules())
print(type(promote(world.site, world.rules, sys.argv[3])).__name__)
"""


def test_two_promotions_at_once_both_end_whole(world):
    world.release(1)
    world.release(2)
    folder = Path(__file__).parents[2]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _PROMOTE, str(folder), str(world.root), f"income@{number}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["PromotionResult"] * 2
    assert not isinstance(verify_desired(world.site, "production"), Refusal)
    assert git(world.root, "rev-list", "--count", "HEAD") == "3"
