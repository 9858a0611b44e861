"""Signed waivers and statements: only the owner's role, only the key's person, only what was signed."""

import dataclasses
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.deploy.gate_signatures import gate_verifier, object_to_signing
from mlops.deploy.roles import RolesSpec
from mlops.errors import ProvenanceError
from mlops.evaluation.signed_answers import Signed
from mlops.evaluation.signed_files import keep_answer, load_answers, sign_answer
from mlops.places import Places
from mlops.provenance.keys import make_key

POLICY = "sha256:" + "1" * 64
CANDIDATE = "sha256:" + "2" * 64


@pytest.fixture
def keys(tmp_path: Path) -> dict:
    return {name: make_key(tmp_path / "keys", name, clock=SystemClock()) for name in ("ada", "bob")}


def verdict(
    keys: dict, *, by: str, signed_by: str, owner: str, until: str | None = None, forge: dict | None = None
) -> bool:
    people = {
        "ada": {"keys": [{"public": keys["ada"].public, **({"until": until} if until else {})}], "roles": ["privacy"]},
        "bob": {"keys": [keys["bob"].public], "roles": ["security"]},
    }
    answer = Signed("membership", CANDIDATE, by=by, reason="looked at by hand", until_us=10**15)
    envelope = sign_answer(answer, product="p", policy=POLICY, key=keys[signed_by])
    verify = gate_verifier(RolesSpec(version=1, people=people), product="p", now_us=SystemClock().now_us())
    return verify(dataclasses.replace(answer, envelope=envelope, **(forge or {})), owner)


CASES = {
    "the owner signs": ({"by": "ada", "signed_by": "ada", "owner": "privacy"}, True),
    "somebody else's role": ({"by": "ada", "signed_by": "ada", "owner": "security"}, False),
    "in another's name": ({"by": "bob", "signed_by": "ada", "owner": "privacy"}, False),
    "with an expired key": ({"by": "ada", "signed_by": "ada", "owner": "privacy", "until": "2020-01-01"}, False),
    "another end than signed": (
        {"by": "ada", "signed_by": "ada", "owner": "privacy", "forge": {"until_us": 10**16}},
        False,
    ),
    "for another candidate": (
        {"by": "ada", "signed_by": "ada", "owner": "privacy", "forge": {"candidate": POLICY}},
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signature_holds(case: str, keys: dict) -> None:
    given, expected = CASES[case]
    assert verdict(keys, **given) is expected


def test_files_come_back_as_waivers_and_statements(tmp_path: Path, keys: dict) -> None:
    waiver = Signed("membership", CANDIDATE, by="ada", reason="looked at by hand", until_us=5)
    statement = Signed("humans-decide", None, by="ada", reason="the process says so", until_us=6)
    for item in (waiver, statement):
        keep_answer(Places(tmp_path), sign_answer(item, product="p", policy=POLICY, key=keys["ada"]), product="p")
    waivers, statements = load_answers(Places(tmp_path), "p")
    assert [dataclasses.replace(item, envelope="") for item in (*waivers, *statements)] == [waiver, statement]
    assert load_answers(Places(tmp_path), "other") == ((), ())


def test_a_file_that_somebody_changed_is_named(tmp_path: Path, keys: dict) -> None:
    waiver = Signed("membership", CANDIDATE, by="ada", reason="looked at by hand", until_us=5)
    envelope = sign_answer(waiver, product="p", policy=POLICY, key=keys["ada"])
    path = keep_answer(Places(tmp_path), envelope, product="p")
    path.write_text(envelope.replace("payload", "load", 1))
    with pytest.raises(ProvenanceError, match=path.name):
        load_answers(Places(tmp_path), "p")


OBJECTIONS = {
    "nothing is wrong": ({}, []),
    "a clause has no verdict": ({"verdict": None}, []),
    "what fails cannot be waived": ({"verdict": "FAIL"}, ["shown-bad"]),
    "what passes needs no waiver": ({"verdict": "PASS"}, ["passes"]),
    "the end is over": ({"until_us": 5}, ["over"]),
    "no reason": ({"reason": "  "}, ["no-reason"]),
    "somebody else's role": ({"owner": "security"}, ["no-role"]),
    "somebody else's key": ({"by": "bob"}, ["unknown-key"]),
}


@pytest.mark.parametrize("case", OBJECTIONS)
def test_what_would_not_count_is_said_before_it_is_signed(case: str, keys: dict) -> None:
    given, expected = OBJECTIONS[case]
    people = {"ada": {"keys": [keys["ada"].public], "roles": ["privacy"]}, "bob": {"roles": ["privacy"]}}
    found = object_to_signing(
        Signed("it", CANDIDATE, given.get("by", "ada"), given.get("reason", "seen"), given.get("until_us", 10**16)),
        owner=given.get("owner", "privacy"),
        public=keys["ada"].public,
        verdict=given.get("verdict", "UNDECIDED"),
        roles=RolesSpec(version=1, people=people),
        now_us=SystemClock().now_us(),
    )
    assert [reason.code for reason in found] == expected
