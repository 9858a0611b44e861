"""DSSE envelopes (secure-systems-lab/dsse v1.0.2) with Ed25519 signatures: a payload, its type and who signed both.

An envelope has one spelling, so that any changed byte is refused: canonical JSON, canonical base64, no other field.
Leaves to others: what the payload says (statement.py, approvals) and whose keys count (keyring.py).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from mlops.errors import ProvenanceError
from mlops.provenance.digest import canonical_json
from mlops.provenance.ed25519 import SigningKey, is_signed_by

IN_TOTO_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Envelope:
    """An envelope that has the right form; its signatures are not yet checked."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    """Public key (`ed25519:<base64>`, also the DSSE key id) and signature."""

    def valid_signers(self) -> tuple[str, ...]:
        """Public keys whose signature holds, each once; none when any signature of the envelope does not hold."""
        message = pre_authentication_encoding(self.payload_type, self.payload)
        signers = tuple(
            public
            for public, signature in self.signatures
            if is_signed_by(public, message=message, signature=signature)
        )
        return tuple(dict.fromkeys(signers)) if len(signers) == len(self.signatures) else ()


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE's PAE, which binds type and payload with their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, *, payload_type: str, keys: tuple[SigningKey, ...]) -> str:
    """The envelope as JSON text, one signature for each key, in their order."""
    message = pre_authentication_encoding(payload_type, payload)
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.public, "sig": base64.b64encode(key.sign(message)).decode()} for key in keys],
        }
    ).decode()


def parse_envelope(text: str | bytes) -> Envelope:
    """JSON text to an envelope of the right form.

    Raises:
        ProvenanceError: It is not the one spelling of an envelope.
    """
    blob = text.encode() if isinstance(text, str) else text
    try:
        value = json.loads(blob)
        if canonical_json(value) != blob or set(value) != {"payload", "payloadType", "signatures"}:
            raise ValueError("not canonical")
        signatures = tuple(_parse_signature(entry) for entry in value["signatures"])
        envelope = Envelope(str(value["payloadType"]), _decode(value["payload"]), signatures)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProvenanceError(
            "not a DSSE envelope in its canonical spelling: it was changed after it was written"
        ) from error
    if not signatures:
        raise ProvenanceError("the envelope carries no signature")
    return envelope


def _parse_signature(entry: Any) -> tuple[str, bytes]:
    if set(entry) != {"keyid", "sig"}:
        raise ValueError("a signature has the fields keyid and sig")
    return str(entry["keyid"]), _decode(entry["sig"])


def _decode(text: str) -> bytes:
    """Base64 in its one spelling: the unused bits of the last letter are zero."""
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if base64.b64encode(blob).decode() != text:
        raise ValueError("base64 is not canonical")
    return blob
