"""What a rebuild reads from attestations, and how it compares."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mlops.clock import FakeClock
from mlops.errors import ProvenanceError
from mlops.overview.rebuild import find_stray_packages
from mlops.overview.rebuild_plan import compare_rebuild, find_newest_image, plan_rebuild, read_signed_steps
from mlops.provenance.digest import digest_bytes
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import MachineSigner, load_machine_signer
from mlops.provenance.sql_steps import StepRecord

FACTS: dict[str, dict[str, Any]] = {
    "dataset-import": {"dataset": "income", "dvc_digest": "0" * 32 + ".dir"},
    "source-check": {"commit": "c" * 40, "is_dirty": False},
    "sweep": {"params": {"lr": 0.1}, "seed": 7, "trial": 3, "sweep_id": "sweep-1"},
    "registration": {"number": 2},
}
OUTPUTS = {
    "dataset-import": "manifest",
    "source-check": "report",
    "sweep": "weights",
    "export": "candidate",
    "gate": "gate",
    "registration": "version",
    "image": "image",
}


def steps_of(signer: MachineSigner) -> list[StepRecord]:
    found = []
    for kind, output in OUTPUTS.items():
        inputs = {
            name: digest_bytes(f"{kind} {name}".encode()) for name in ("code", "trainer", "spec", "lock", "deploy_spec")
        }
        record = StepRecord(
            kind, kind, "income", "", 1, 2, inputs, {output: digest_bytes(kind.encode())}, FACTS.get(kind, {}), None
        )
        found.append(replace(record, envelope=signer.sign_step(record)))
    return found


@pytest.fixture
def signer(tmp_path: Path) -> MachineSigner:
    return load_machine_signer(tmp_path / "keys", clock=FakeClock())


def ring_of(signer: MachineSigner) -> KeyRing:
    return KeyRing([AcceptedKey(signer.key.public, "machine")])


def test_a_plan_is_read_from_the_envelopes_not_from_the_rows(signer: MachineSigner) -> None:
    lying = [replace(step, facts={"params": {"lr": 9.9}}, outputs={}) for step in steps_of(signer)]
    plan = plan_rebuild(read_signed_steps(lying, keyring=ring_of(signer)))
    assert (plan.params, plan.seed, plan.trial, plan.commit, plan.number) == ({"lr": 0.1}, 7, 3, "c" * 40, 2)
    assert plan.recorded["weights"] == digest_bytes(b"sweep")
    assert plan.recorded["code of image"] == digest_bytes(b"image code")
    json.dumps(plan.to_json())


def test_unsigned_damaged_and_foreign_attestations_are_refused(signer: MachineSigner) -> None:
    steps = steps_of(signer)
    with pytest.raises(ProvenanceError, match="carries no attestation"):
        read_signed_steps([replace(steps[0], envelope=None)], keyring=ring_of(signer))
    envelope = steps[0].envelope or ""
    with pytest.raises(ProvenanceError):
        read_signed_steps([replace(steps[0], envelope=envelope.replace("A", "B", 1))], keyring=ring_of(signer))
    with pytest.raises(ProvenanceError, match="belongs to nobody"):
        read_signed_steps(steps, keyring=KeyRing([]))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_chain_that_lacks_a_step_is_refused(signer: MachineSigner, kind: str) -> None:
    steps = [step for step in steps_of(signer) if step.kind != kind]
    with pytest.raises(ProvenanceError, match=f"no {kind} step"):
        plan_rebuild(read_signed_steps(steps, keyring=ring_of(signer)))


def test_an_ensemble_is_refused_in_a_sentence(signer: MachineSigner) -> None:
    steps = steps_of(signer)
    sweep = next(step for step in steps if step.kind == "sweep")
    joined = replace(sweep, facts={**sweep.facts, "members": 4}, envelope=None)
    steps[steps.index(sweep)] = replace(joined, envelope=signer.sign_step(joined))
    with pytest.raises(ProvenanceError, match="ensemble of 4 isolated members"):
        plan_rebuild(read_signed_steps(steps, keyring=ring_of(signer)))


def test_every_digest_that_differs_or_was_not_made_is_named(signer: MachineSigner) -> None:
    plan = plan_rebuild(read_signed_steps(steps_of(signer), keyring=ring_of(signer)))
    assert all(it.is_equal for it in compare_rebuild(plan, plan.recorded))
    changed = {**plan.recorded, "weights": digest_bytes(b"other")}
    del changed["image"]
    assert [it.name for it in compare_rebuild(plan, changed) if not it.is_equal] == ["weights", "image"]


def test_packages_in_another_version_than_locked_are_named() -> None:
    numpy = metadata.version("numpy")
    lock = f"# comment\nnumpy=={numpy}\nclick==0.1 ; python_version > '3'\n    # via x\nno-such-package==1.0\n"
    assert find_stray_packages(lock) == (
        f"click: locked 0.1, installed {metadata.version('click')}",
        "no-such-package: locked 1.0, installed none",
    )


def test_of_two_images_of_a_version_the_newer_one_is_made_again(signer: MachineSigner):
    image = steps_of(signer)[-1]
    newer, probe = replace(image, step_id="b", finished_us=9), replace(image, step_id="c", kind="probe", finished_us=10)
    assert find_newest_image([newer, image, probe]) == find_newest_image([probe, image, newer]) == newer
    assert find_newest_image([probe]) is None
