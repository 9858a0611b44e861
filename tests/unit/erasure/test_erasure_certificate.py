"""Any changed byte breaks a certificate; what it says agrees with itself; it follows from the one before."""

import json
from dataclasses import replace

import pytest

from mlops.clock import FakeClock
from mlops.erasure.certificate import (
    parse_certificate,
    render_certificate,
    render_predicate,
    sign_certificate,
    verify_certificate,
)
from mlops.erasure.sql_erasure import BatchRow, RequestRow
from mlops.errors import ProvenanceError
from mlops.provenance.digest import digest_json
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import make_key

SHA = digest_json("x")
FACTS = {
    "before": {"digest": SHA, "rows": 10}, "after": {"digest": digest_json("y"), "rows": 8}, "rows_removed": 2,
    "shards": [{"path": "train/g0", "before": SHA, "after": SHA, "rows_before": 5, "rows_after": 3}],
    "purge": [{"store": "dvc", "what": "shard", "digest": SHA, "is_gone": True, "reason": ""}],
}  # fmt: skip
BATCH = BatchRow("batch-1", "people", "certifying", 1, 2, "", FACTS, "", "", 1, 3)
REQUEST = RequestRow("erasure-1", "people", "ab" * 32, "command", "batched", 1, 100, 1, None, "batch-1", "")


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path, "machine", clock=FakeClock())


def sign(key, *, batch=BATCH, previous="", now_us=50):
    return sign_certificate(render_predicate(batch, [REQUEST], number=1, previous=previous, now_us=now_us), key=key)


def problems(text, key, **others):
    keyring = KeyRing([AcceptedKey(key.public, "the machine")])
    return [it.text for it in verify_certificate(parse_certificate(text), keyring=keyring, **others) if not it.is_good]


def test_a_good_certificate_holds_and_names_nobody(key):
    text = sign(key)
    assert problems(text, key) == []
    assert REQUEST.subject not in json.dumps(parse_certificate(text).predicate)


def test_every_changed_byte_breaks_it(key):
    text = sign(key).encode()
    for position in range(0, len(text), 7):
        changed = text[:position] + bytes([text[position] ^ 1]) + text[position + 1 :]
        try:
            found = problems(changed, key)
        except ProvenanceError:
            continue
        assert found, f"byte {position} was changed and nothing was said"


def test_a_stranger_s_key_is_named(key, tmp_path):
    stranger = make_key(tmp_path, "stranger", clock=FakeClock())
    assert "whom nobody here vouches for" in problems(sign(stranger), key)[0]


@pytest.mark.parametrize("signer", ["machine", "stranger"])
def test_a_certificate_that_does_not_hold_is_not_said_to_prove_anything(key, tmp_path, signer):
    used = key if signer == "machine" else make_key(tmp_path, signer, clock=FakeClock())
    found = parse_certificate(sign(used))
    keyring = KeyRing([AcceptedKey(key.public, "the machine")])
    text = render_certificate(found, verify_certificate(found, keyring=keyring))
    assert ("the rows of these requests left" in text) is (signer == "machine")
    assert ("it proves nothing" in text) is (signer == "stranger")


LIES = {
    "fewer rows left than the versions say": ({"rows_removed": 1}, "rows left"),
    "something is not gone": ({"purge": [{**FACTS["purge"][0], "is_gone": False}]}, "not gone"),
}


@pytest.mark.parametrize(("facts", "said"), LIES.values(), ids=LIES)
def test_numbers_that_disagree_are_said(key, facts, said):
    assert said in problems(sign(key, batch=replace(BATCH, facts={**FACTS, **facts})), key)[0]


def test_certificates_are_a_chain(key):
    first = parse_certificate(sign(key))
    assert problems(sign(key, previous=first.digest), key, previous=first) == []
    assert problems(sign(key, previous=SHA), key, previous=first) == ["does not follow from it"]
