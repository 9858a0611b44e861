"""The certificate of a batch: a signed in-toto statement, chained to the one before, that proves the process.

It says what was done, when, and on what evidence; it does not claim that no influence of a person is left in anything
derived from a model. No name, id or keyed hash stands in it: a request is a digest that its holder can recompute.
Leaves to others: doing what it certifies (running.py), keys (mlops/provenance).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.clock import render_time
from mlops.erasure import sql_erasure
from mlops.erasure.sql_erasure import BatchRow, CertificateRow, RequestRow
from mlops.errors import ProvenanceError
from mlops.ledger.connection import Transaction
from mlops.places import Places
from mlops.provenance.digest import canonical_json, digest_bytes, digest_json, hex_of
from mlops.provenance.dsse import IN_TOTO_TYPE, parse_envelope, sign_envelope
from mlops.provenance.ed25519 import SigningKey
from mlops.provenance.keyring import KeyRing
from mlops.provenance.statement import OWN_PREFIX, STATEMENT_TYPE

PREDICATE_TYPE = f"{OWN_PREFIX}erasure:v1"
PROVES = (
    "the rows of these requests left the pinned dataset version, which is named by digest",
    "models that were trained on them are replaced by models trained without them, or serve no longer",
    "what was made from them was removed from every store named in the receipts, and checked to be gone",
)
PROVES_NOT = (
    "that no influence is left in anything that people outside derived from a former model's answers",
    "anything about copies outside the stores named here, such as exports, screenshots or clones offline",
)


@dataclass(frozen=True)
class Certificate:
    """A certificate as read from its envelope."""

    predicate: dict[str, Any]
    signers: tuple[str, ...]
    """Public keys whose signatures hold; empty when the envelope was changed."""
    digest: str
    """`sha256:…` of the envelope."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked offline."""

    is_good: bool
    text: str


def certificates_folder(places: Places) -> Path:
    """Copies of the certificates, one file each, for whoever asks."""
    return places.state / "certificates"


def commit_to_request(row: RequestRow) -> str:
    """A digest that only the holder of the request's id and of the keyed hash can recompute."""
    return digest_json({"request": row.request_id, "subject": row.subject})


def render_predicate(
    batch: BatchRow, requests: Sequence[RequestRow], *, number: int, previous: str, now_us: int
) -> dict[str, Any]:
    """What the certificate says, from the batch's facts."""
    facts = batch.facts
    return {
        "number": number,
        "previous": previous,
        "batch": batch.batch_id,
        "dataset": batch.dataset,
        "opened": render_time(batch.opened_us),
        "certified": render_time(now_us),
        "forced": batch.forced,
        "requests": [
            {
                "request": commit_to_request(row),
                "channel": row.channel,
                "received": render_time(row.received_us),
                "fenced": render_time(row.fenced_us or row.received_us),
                "deadline": render_time(row.deadline_us),
                "is_in_time": now_us <= row.deadline_us,
            }
            for row in requests
        ],
        "data": {name: facts.get(name) for name in ("before", "after", "commit", "rows_removed", "shards")},
        "models": facts.get("models", []),
        "retrains": facts.get("retrains", {}),
        "rollout": facts.get("rollout", []),
        "purge": facts.get("purge", []),
        "exceptions": facts.get("exceptions", {}),
        "proves": list(PROVES),
        "proves_not": list(PROVES_NOT),
    }


def sign_certificate(predicate: Mapping[str, Any], *, key: SigningKey) -> str:
    """The statement in an envelope, as JSON text; its subjects are the version and the models that came out."""
    subjects = {"manifest": str(predicate["data"]["after"]["digest"])}
    subjects |= {f"{product}-image": str(it["image"]) for product, it in predicate["retrains"].items()}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": hex_of(digest)}} for name, digest in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return sign_envelope(canonical_json(statement), payload_type=IN_TOTO_TYPE, keys=(key,))


def add_certificate(
    transaction: Transaction, batch: BatchRow, requests: Sequence[RequestRow], *, key: SigningKey
) -> CertificateRow:
    """Sign and keep the next certificate of the chain."""
    known = sql_erasure.list_certificates(transaction.connection)
    number, previous = len(known) + 1, known[-1].digest if known else ""
    predicate = render_predicate(batch, requests, number=number, previous=previous, now_us=transaction.now_us)
    envelope = sign_certificate(predicate, key=key)
    row = CertificateRow(
        number=number,
        batch_id=batch.batch_id,
        dataset=batch.dataset,
        digest=digest_bytes(envelope.encode()),
        previous=previous,
        envelope=envelope,
        at_us=transaction.now_us,
    )
    sql_erasure.insert_many(transaction, sql_erasure.certificates, [row])
    transaction.append("erasure-certificate.signed", batch.batch_id, {"number": number, "digest": row.digest})
    return row


def parse_certificate(text: str | bytes) -> Certificate:
    """Envelope to certificate; nothing is trusted yet.

    Raises:
        ProvenanceError: Not the envelope of a certificate, or changed so that it is no envelope.
    """
    envelope = parse_envelope(text)
    try:
        value = json.loads(envelope.payload)
        if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("another kind of statement")
        predicate = value["predicate"]
        if canonical_json(value) != envelope.payload or not isinstance(predicate["requests"], list):
            raise ValueError("not canonical")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProvenanceError(f"not the statement of an erasure: {error!r}") from error
    blob = text.encode() if isinstance(text, str) else text
    return Certificate(predicate, envelope.valid_signers(), digest_bytes(blob))


def verify_certificate(
    certificate: Certificate, *, keyring: KeyRing, previous: Certificate | None = None
) -> tuple[Finding, ...]:
    """Everything that can be checked with the file alone, the keys and, if there is one, the certificate before it."""
    signed = _check_signers(certificate, keyring)
    if not certificate.signers:
        return tuple(signed)  # nothing else in it can be believed, not even its form
    try:
        return (*signed, *_check_content(certificate, previous))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return (*signed, Finding(False, f"it lacks what a certificate says: {error!r}"))


def _check_content(certificate: Certificate, previous: Certificate | None) -> list[Finding]:
    found = _check_rows(certificate.predicate)
    said = str(certificate.predicate.get("previous", ""))
    if previous is not None:
        is_next = said == previous.digest
        found.append(Finding(is_next, "follows the certificate before it" if is_next else "does not follow from it"))
    receipts = certificate.predicate.get("purge", [])
    allowed = certificate.predicate.get("exceptions", {})
    left = [it for it in receipts if not it.get("is_gone") and f"{it['store']}: {it['what']}" not in allowed]
    gone = f"{len(receipts) - len(allowed)} objects purged, each checked to be gone; {len(allowed)} exceptions"
    found.append(Finding(not left, f"{len(left)} objects are not gone" if left else gone))
    late = [it for it in certificate.predicate["requests"] if not it.get("is_in_time")]
    count = len(certificate.predicate["requests"])
    text = f"{len(late)} of {count} requests were answered late" if late else f"{count} requests answered in time"
    return [*found, Finding(True, text)]


def render_certificate(certificate: Certificate, findings: Sequence[Finding]) -> str:
    """For people."""
    it = certificate.predicate
    data = it["data"]
    lines = [
        f"certificate {it['number']} of {it['dataset']}, {it['certified']}",
        f"  requests   {len(it['requests'])}",
        f"  data       {str(_digest_before(it))[:19]} -> {str(data['after']['digest'])[:19]}, "
        f"{data.get('rows_removed') or 0} rows, {len(data.get('shards') or [])} shards rewritten",
    ]
    for model in it["models"]:
        lines.append(f"  model      {model['product']}@{model['number']} -> {model['replaced_by'] or 'retired'}")
    lines += [f"  rollout    {move['environment']}: {move['product']} {move['kind']}" for move in it["rollout"]]
    lines += [f"  exception  {what}: {why}" for what, why in it["exceptions"].items()]
    lines += [f"  [{'x' if finding.is_good else ' '}] {finding.text}" for finding in findings]
    if not all(finding.is_good for finding in findings):
        return "\n".join([*lines, "it proves nothing as long as a line above has no [x]"])
    lines += ["it proves", *(f"  + {text}" for text in it["proves"])]
    lines += ["it does not prove", *(f"  - {text}" for text in it["proves_not"])]
    return "\n".join(lines)


def _digest_before(predicate: Mapping[str, Any]) -> str:
    return str((predicate["data"].get("before") or {}).get("digest", ""))


def _check_signers(certificate: Certificate, keyring: KeyRing) -> list[Finding]:
    if not certificate.signers:
        return [Finding(False, "its signature does not fit: a byte was changed")]
    found = []
    for signer in certificate.signers:
        owner = keyring.find_owner(signer)
        text = f"signed by {owner}" if owner else f"signed by {signer}, whom nobody here vouches for (--key)"
        found.append(Finding(owner is not None, text))
    return found


def _check_rows(predicate: Mapping[str, Any]) -> list[Finding]:
    """The numbers agree with each other."""
    data = predicate["data"]
    before, after, shards = data.get("before"), data.get("after"), data.get("shards") or []
    removed = sum(int(shard["rows_before"]) - int(shard["rows_after"]) for shard in shards)
    is_equal = before is None or int(before["rows"]) - int(after["rows"]) == removed == int(data["rows_removed"] or 0)
    return [Finding(is_equal, f"{removed} rows left {len(shards)} shards, as the versions' sizes say")]
