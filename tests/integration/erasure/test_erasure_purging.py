"""Purging on real DVC stores, ledger, git and image layout: what is affected goes, everything else stays as it was."""

import shutil

import pytest

from mlops.datasets.forgetting import forget_subjects
from mlops.datasets.version import load_dataset_version, read_shard
from mlops.deploy.state_keeper import load_desired_state
from mlops.deploy.withdrawal import plan_rollback
from mlops.erasure.affected import find_affected
from mlops.erasure.purging import purge
from mlops.erasure.scanning import Needles, scan_project
from mlops.errors import Refusal
from mlops.overview.audit import verify_reference
from mlops.provenance.digest import hex_of
from mlops.provenance.reference import parse_reference
from mlops.serving.oci_layout import ImageLayout

SPEND = "48151.62342"
"""Only the person has it (conftest.py)."""


@pytest.fixture
def said():
    return []


@pytest.fixture
def replaced(machine):
    """Version 1 was trained on the person and served; version 2 is clean and serves now, 1 is its way back."""
    old = machine.train(1)
    machine.promote(1)
    machine.reconcile()
    forget_subjects(machine.places, "people", [machine.subject])
    machine.world.commit("Forget")
    new = machine.train(2)
    machine.promote(2)
    return machine, old, new


def ask(machine):
    return find_affected(machine.project, "people", frozenset({machine.subject}))


def run(machine, affected, said):
    return purge(machine.project, affected, say=said.append, runtimes=[machine.world.runtime])


def left(receipts):
    return [(receipt.store, receipt.what, receipt.reason) for receipt in receipts if not receipt.is_gone]


def test_the_affected_are_those_of_the_old_version_only(replaced):
    machine, old, _new = replaced
    affected = ask(machine)
    assert affected.images == (old,) and affected.rows == 1
    assert [model.number for model in affected.models] == [1]
    assert [sweep.sweep_id for sweep in affected.sweeps] == ["sweep-1"]
    assert {(place.number, place.image) for place in affected.environments} == {(1, old)}
    assert affected.manifests != () and machine.version().digest not in affected.manifests


def test_what_serves_is_not_touched_and_goes_when_it_does_not_serve_any_more(replaced, said):
    machine, old, new = replaced
    layout = ImageLayout(machine.places.images)
    receipts = run(machine, ask(machine), said)
    assert [reason for _, _, reason in left(receipts)] == ["still serves in production"]
    assert layout.is_complete(old)
    machine.reconcile()
    receipts = run(machine, ask(machine), said)
    assert left(receipts) == []
    assert not layout.has_blob(old) and layout.is_complete(new)
    assert not (machine.places.checkpoints / "sweep-1").exists()
    assert (machine.places.checkpoints / "sweep-2").exists()
    with machine.project.ledger.read():
        release = load_desired_state(machine.world.site, "production").find_product("income")
    assert release.last_known_good is None and release.versions[0].number == 2
    machine.reconcile()
    assert {instance.digest for instance in machine.world.runtime.list_instances()} == {new}
    assert left(run(machine, ask(machine), said)) == [], "again: nothing is left to do"


def test_other_shards_of_old_versions_stay_readable(replaced, said):
    machine, _, _ = replaced
    affected = ask(machine)
    before = load_dataset_version(machine.places, "people", revision=affected.manifests[0])
    machine.reconcile()
    run(machine, affected, said)
    gone = {found.shard.md5 for found in affected.shards}
    for shard in before.manifest.shards:
        if shard.md5 not in gone:
            assert read_shard(before, shard).num_rows == shard.rows


def test_a_remote_that_is_down_is_retried_and_never_reported_as_done(replaced, said):
    machine, _, _ = replaced
    machine.reconcile()
    away = machine.places.dvc_remote.rename(machine.places.dvc_remote.with_name("unmounted"))
    stuck = left(run(machine, ask(machine), said))
    assert {store for store, _, _ in stuck} == {"dvc"} and "cannot be reached" in stuck[0][2]
    away.rename(machine.places.dvc_remote)
    assert left(run(machine, ask(machine), said)) == []


def test_a_purged_version_verifies_as_erased_and_an_unpurged_loss_as_broken(replaced, said):
    machine, _old, _new = replaced
    machine.reconcile()
    affected = ask(machine)
    run(machine, affected, said)
    report = verify_reference(machine.project, parse_reference("income@1"))
    by_status = {(link.name, link.status) for link in report.links if link.status in ("erased", "broken")}
    assert {("candidate", "erased"), ("gate", "erased"), ("image", "erased"), ("manifest", "erased")} <= by_status
    assert report.is_verified, [link.text for link in report.broken]
    newest = verify_reference(machine.project, parse_reference("income@2"))
    candidate = next(link.digest for link in newest.links if link.name == "candidate")
    (machine.places.candidates / hex_of(candidate) / "model.onnx").unlink()
    assert not verify_reference(machine.project, parse_reference("income@2")).is_verified


def test_a_rollback_to_a_purged_version_is_refused_and_the_next_best_offered(machine, said):
    forget_first = machine.train(1)
    machine.promote(1)
    machine.reconcile()
    forget_subjects(machine.places, "people", [machine.subject])
    machine.world.commit("Forget")
    for number in (2, 3):
        machine.train(number)
        machine.promote(number)
        machine.reconcile()
    run(machine, ask(machine), said)
    site, rules = machine.world.site, machine.world.rules
    release = load_desired_state(site, "production").find_product("income")
    refused = plan_rollback(site, rules, release, leave=release.versions[0].image, to=1)
    assert isinstance(refused, Refusal)
    assert refused.reasons[0].code == "erased" and "--to 2" in refused.reasons[0].text
    target = plan_rollback(site, rules, release, leave=release.versions[0].image)
    assert not isinstance(target, Refusal) and target.versions[0].number == 2
    assert target.versions[0].image != forget_first


def test_what_the_pinned_version_holds_is_said_and_kept(machine, said):
    machine.train(1)
    receipts = run(machine, ask(machine), said)
    assert [(store, reason) for store, what, reason in left(receipts) if what.startswith("shard")] == [
        ("dvc", "the pinned version needs it: take the person out of that first")
    ]
    version = machine.version()
    assert all(read_shard(version, shard).num_rows == shard.rows for shard in version.manifest.shards)


def look(machine):
    return scan_project(machine.project, Needles(frozenset({machine.subject}), frozenset({SPEND})))


def test_the_scan_finds_the_person_in_every_store_before_and_nothing_after_the_purge(replaced, said):
    machine, _, _ = replaced
    before = {(finding.store, finding.what) for finding in look(machine)}
    stores = {"dvc-cache", "dvc-remote", "checkpoints", "candidates", "images", "datasets"}
    assert stores <= {store for store, what in before if what == "value"}
    assert {("dvc-cache", "keyed hash"), ("dvc-remote", "keyed hash")} <= before
    machine.reconcile()
    run(machine, ask(machine), said)
    assert look(machine) == ()


def test_a_push_from_a_stale_clone_is_swept_by_the_next_purge(replaced, said, tmp_path):
    machine, _, _ = replaced
    machine.reconcile()
    stale = shutil.copytree(machine.places.dvc_remote, tmp_path / "stale")
    run(machine, ask(machine), said)
    shutil.copytree(stale, machine.places.dvc_remote, dirs_exist_ok=True)
    assert {finding.store for finding in look(machine)} == {"dvc-remote"}
    assert left(run(machine, ask(machine), said)) == []
    assert look(machine) == ()


def test_a_purge_that_is_killed_after_each_step_is_ended_by_the_next(replaced, said):
    """`say` is told each step: the first run dies at the first word, the next at the second, and so on."""
    machine, _old, new = replaced
    machine.reconcile()

    def dying_at(number):
        words = []

        def say(line):
            words.append(line)
            if len(words) == number:
                raise KeyboardInterrupt

        return say

    for number in range(1, 30):
        try:
            receipts = purge(machine.project, ask(machine), say=dying_at(number), runtimes=[machine.world.runtime])
        except KeyboardInterrupt:
            report = verify_reference(machine.project, parse_reference("income@1"))
            assert not report.broken, "whatever is gone already verifies as erased"
            continue
        break
    assert number > 5 and left(receipts) == []
    assert look(machine) == ()
    assert ImageLayout(machine.places.images).is_complete(new)
