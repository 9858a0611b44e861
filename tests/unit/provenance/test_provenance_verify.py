"""Verifying a chain: whole, it verifies; any one thing changed, it is refused and the broken link is named."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
import sqlalchemy as sa

from mlops.clock import FakeClock
from mlops.errors import ProvenanceError
from mlops.ledger import sql_events
from mlops.provenance.digest import digest_bytes, digest_file
from mlops.provenance.dsse import IN_TOTO_TYPE, parse_envelope, sign_envelope
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import make_key
from mlops.provenance.sql_steps import edges, steps
from mlops.provenance.statement import parse_statement, render_statement
from mlops.provenance.verify import FoundBytes, verify_chain

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
KINDS = ("dataset-import", "sweep", "export", "gate", "registration", "image")


def test_a_whole_chain_verifies_link_by_link(chain: Any) -> None:
    report = chain.verify(required_kinds=frozenset(KINDS))
    assert report.broken == ()
    assert report.is_verified
    assert {link.step_kind for link in report.links if link.check == "signature"} == set(KINDS)
    recomputed = {link.name for link in report.links if link.check == "digest" and link.status == "verified"}
    assert recomputed == {"candidate", "gate", "version", "image", "trainer"}
    json.dumps(report.to_json())


def test_an_unknown_digest_is_no_chain(chain: Any) -> None:
    report = chain.verify(digest_bytes(b"nobody made me"))
    assert not report.is_verified
    assert report.broken[0].check == "origin"


def test_no_start_is_no_chain(chain: Any) -> None:
    with chain.ledger.read() as connection:
        assert not verify_chain(connection, (), rules=chain.rules()).is_verified


@pytest.mark.parametrize("kind", KINDS)
def test_any_byte_of_any_envelope_flipped_is_refused_and_named(chain: Any, kind: str) -> None:
    whole = chain.step(kind).envelope.encode()
    chooser = random.Random(kind)
    positions = range(len(whole)) if SCALE > 1 else sorted(chooser.sample(range(len(whole)), 12))
    for position in positions:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chooser.randrange(7)
        chain.change_row(kind, envelope=flipped.decode("ascii"))
        report = chain.verify()
        assert [(link.check, link.step_kind) for link in report.broken] == [("signature", kind)], position


def test_any_byte_of_any_artefact_flipped_is_refused_and_named(chain: Any) -> None:
    state = chain.places.state
    files = [path for folder in ("candidates", "evidence", "images") for path in (state / folder).rglob("*")]
    artefacts = [path for path in files if path.is_file() and not path.name.endswith(".attestation.json")]
    assert len(artefacts) == 6
    for path in artefacts:
        whole = path.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            broken = chain.verify().broken
            assert broken, f"byte {position} of {path}"
            assert any(str(state) in link.text and link.check == "digest" for link in broken)
        path.write_bytes(whole)
    assert chain.verify().is_verified


@pytest.mark.parametrize("name", ["candidates", "evidence", "images"])
def test_missing_bytes_break_the_chain_unless_erased_under_a_certificate(chain: Any, name: str) -> None:
    kind = {"candidates": "export", "evidence": "gate", "images": "image"}[name]
    output = next(iter(chain.step(kind).outputs.values()))
    (chain.places.state / name).rename(chain.places.state / "away")
    assert any(link.digest == output for link in chain.verify().broken)
    report = chain.verify(erased={output: "certificate-7"})
    assert report.is_verified
    assert any(link.status == "erased" and "certificate-7" in link.text for link in report.links)


def test_changed_bytes_are_broken_even_under_a_certificate(chain: Any) -> None:
    candidate = chain.step("export").outputs["candidate"]
    (next(chain.places.candidates.glob("*/model.onnx"))).write_bytes(b"other")
    assert not chain.verify(erased={candidate: "certificate-7"}).is_verified


def test_evidence_is_held_against_the_files_that_the_step_states(chain: Any) -> None:
    gate = chain.step("gate")
    folder = next(path for path in chain.places.evidence.iterdir() if path.is_dir())
    (folder / "gate.html").write_text("<p>PASS</p>")
    files = {path.name: digest_file(path) for path in folder.iterdir()}
    chain.record("gate", {**gate.inputs, "code": digest_bytes(b"new")}, gate.outputs, verdict="PASS", files=files)
    gate_digest = gate.outputs["gate"]
    assert chain.verify(gate_digest).is_verified
    (folder / "gate.html").write_text("<p>pass</p>")
    broken = chain.verify(gate_digest).broken
    assert [link.name for link in broken] == ["gate"]
    assert "gate.html" in broken[0].text


def test_a_file_added_to_a_candidate_breaks_it(chain: Any) -> None:
    (next(chain.places.candidates.glob("*/model.onnx")).parent / "extra.py").write_text("")
    assert {link.name for link in chain.verify().broken} == {"candidate"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_step_breaks_the_chain(chain: Any, kind: str) -> None:
    image, outputs = chain.image, chain.step(kind).outputs
    with chain.ledger.write() as transaction:
        step_id = chain.step(kind).step_id
        transaction.connection.execute(sa.delete(edges).where(edges.c.step_id == step_id))
        transaction.connection.execute(sa.delete(steps).where(steps.c.step_id == step_id))
    broken = chain.verify(image).broken
    assert [link.digest for link in broken if link.check == "origin"]
    assert {link.digest for link in broken} == set(outputs.values())


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("facts", '{"verdict":"FAIL"}', "facts"),
        ("inputs", "{}", "inputs"),
        ("finished_us", 1, "finished_us"),
        ("product", "other", "product"),
        ("envelope", None, "no attestation"),
    ],
)
def test_a_changed_row_differs_from_its_statement(chain: Any, column: str, value: object, word: str) -> None:
    chain.change_row("gate", **{column: value})
    signature = [link for link in chain.verify().links if link.check == "signature" and link.step_kind == "gate"]
    assert signature[0].status == "broken"
    assert word in signature[0].text


def test_swapped_statements_are_refused(chain: Any) -> None:
    one, other = chain.step("export").envelope, chain.step("gate").envelope
    chain.change_row("export", envelope=other)
    chain.change_row("gate", envelope=one)
    assert {link.step_kind for link in chain.verify().broken} == {"export", "gate"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"is_revoked": True}, "was revoked"),
        ({"not_after_us": 1}, "expired"),
        ({"not_before_us": 2**52}, "counts from"),
    ],
)
def test_keys_that_do_not_count_break_every_signature(chain: Any, changes: dict[str, Any], code: str) -> None:
    report = chain.verify(keyring=KeyRing([AcceptedKey(chain.machine, "builder-1", **changes)]))
    assert len(report.broken) == len(KINDS)
    assert all(code in link.text and "builder-1" in link.text for link in report.broken)


def test_an_unknown_key_breaks_every_signature(chain: Any) -> None:
    report = chain.verify(keyring=KeyRing([]))
    assert all("belongs to nobody" in link.text for link in report.broken)
    assert len(report.broken) == len(KINDS)


def test_a_key_that_expired_after_it_signed_still_counts(chain: Any) -> None:
    late = chain.step("image").finished_us + 1
    assert chain.verify(keyring=KeyRing([AcceptedKey(chain.machine, "builder-1", not_after_us=late)])).is_verified


def test_a_statement_signed_anew_by_a_stranger_is_refused(chain: Any, tmp_path: Any) -> None:
    stranger = make_key(tmp_path / "elsewhere", "machine", clock=FakeClock())
    payload = render_statement(chain.step("gate"))
    chain.change_row("gate", envelope=sign_envelope(payload, payload_type=IN_TOTO_TYPE, keys=(stranger,)))
    assert [link.check for link in chain.verify().broken] == ["signature"]


def test_a_changed_event_breaks_the_ledger_chain(chain: Any) -> None:
    with chain.ledger.write() as transaction:
        events = sql_events.events
        transaction.connection.execute(sa.update(events).where(events.c.number == 3).values(subject="step-99"))
    assert any(link.check == "event" and "event 3" in link.text for link in chain.verify().broken)


def test_a_changed_edge_is_named(chain: Any) -> None:
    with chain.ledger.write() as transaction:
        step_id = chain.step("gate").step_id
        where = sa.and_(edges.c.step_id == step_id, edges.c.name == "manifest")
        transaction.connection.execute(sa.update(edges).where(where).values(digest=digest_bytes(b"x")))
    assert [link.check for link in chain.verify().broken] == ["record"]


def test_a_version_is_recomputed_from_its_parts(chain: Any) -> None:
    step = chain.step("registration")
    chain.record("registration", {**step.inputs, "code": digest_bytes(b"new")}, step.outputs, number=2, alias="latest")
    broken = chain.verify(step.outputs["version"]).broken
    assert [link.name for link in broken] == ["version"]


def test_a_missing_kind_of_step_is_named(chain: Any) -> None:
    broken = chain.verify(required_kinds=frozenset({"probe"})).broken
    assert [link.step_kind for link in broken] == ["probe"]


def test_bytes_that_may_be_thrown_away_do_not_break_the_chain(chain: Any) -> None:
    loaders = {"weights": lambda step, digest: FoundBytes(None, "checkpoints", is_needed=False)}
    report = chain.verify(loaders=loaders)
    assert report.is_verified
    assert [link.status for link in report.links if link.name == "weights"] == ["recorded"]


def test_the_sidecar_beside_an_artefact_repeats_the_envelope_and_is_mended(chain: Any) -> None:
    sidecars = sorted(chain.places.state.rglob("*.attestation.json"))
    assert len(sidecars) == len(KINDS)
    step = chain.step("export")
    beside = next(chain.places.candidates.glob("*.attestation.json"))
    assert beside.read_text() == step.envelope
    beside.unlink()
    chain.record("export", step.inputs, step.outputs)
    assert beside.read_text() == step.envelope


@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_says_what_the_record_says(chain: Any, kind: str) -> None:
    step = chain.step(kind)
    envelope = parse_envelope(step.envelope)
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {entry["name"]: f"sha256:{entry['digest']['sha256']}" for entry in statement["subject"]} == step.outputs
    assert parse_statement(envelope.payload, envelope=step.envelope) == step
    assert render_statement(step) == envelope.payload


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"payload":"","payloadType":"x","signatures":[]}', "{" * 5000, '"é"'],
)
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(ProvenanceError):
        parse_envelope(text)


def test_one_bad_signature_spoils_an_envelope_with_a_good_one(tmp_path: Any) -> None:
    ada, bob = (make_key(tmp_path, name, clock=FakeClock()) for name in ("ada", "bob"))
    envelope = parse_envelope(sign_envelope(b"x", payload_type="t", keys=(ada, bob)))
    assert envelope.valid_signers() == (ada.public, bob.public)
    swapped = type(envelope)("t", b"x", (envelope.signatures[0], (bob.public, envelope.signatures[0][1])))
    assert swapped.valid_signers() == ()


def test_one_key_signing_twice_is_one_signer(tmp_path: Any) -> None:
    ada = make_key(tmp_path, "ada", clock=FakeClock())
    envelope = parse_envelope(sign_envelope(b"x", payload_type="t", keys=(ada, ada)))
    assert envelope.valid_signers() == (ada.public,)
