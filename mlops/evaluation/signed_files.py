"""Waivers and statements as files: `evaluation/signed/<product>/*.json`, one DSSE envelope each, in git.

Leaves to others: whether a signature holds and whose it is (mlops/deploy/gate_signatures.py), what it changes
(signed_answers.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlops.errors import ProvenanceError
from mlops.evaluation.signed_answers import Signed
from mlops.files import write_atomically
from mlops.places import Places
from mlops.provenance.digest import canonical_json, digest_bytes, hex_of
from mlops.provenance.dsse import IN_TOTO_TYPE, parse_envelope, sign_envelope
from mlops.provenance.ed25519 import SigningKey
from mlops.provenance.statement import STATEMENT_TYPE

PREDICATE_TYPE = "urn:mlops:attestation:gate-answer:v1"


def signed_folder(places: Places, product: str) -> Path:
    """Where a product's waivers and statements lie."""
    return places.root / "evaluation" / "signed" / product


def sign_answer(answer: Signed, *, product: str, policy: str, key: SigningKey) -> str:
    """A waiver or statement in an envelope, as JSON text; its subject is the candidate, or the policy's digest."""
    digest = answer.candidate or policy
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": product, "digest": {"sha256": hex_of(digest)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "product": product,
            "about": answer.subject,
            "candidate": answer.candidate,
            "by": answer.by,
            "reason": answer.reason,
            "until_us": answer.until_us,
        },
    }
    return sign_envelope(canonical_json(statement), payload_type=IN_TOTO_TYPE, keys=(key,))


def parse_answer(envelope: str, *, product: str) -> Signed:
    """What an envelope says, whoever signed it.

    Raises:
        ProvenanceError: It is no waiver or statement of this product.
    """
    try:
        value: dict[str, Any] = json.loads(parse_envelope(envelope).payload)
        said = value["predicate"]
        if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE) or said["product"] != product:
            raise ValueError("another kind of statement, or of another product")
        candidate = None if said["candidate"] is None else str(said["candidate"])
        return Signed(
            str(said["about"]), candidate, str(said["by"]), str(said["reason"]), int(said["until_us"]), envelope
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ProvenanceError(f"not a waiver or statement of {product}: {error!r}") from error


def keep_answer(places: Places, envelope: str, *, product: str) -> Path:
    """Write an envelope to its file, named by its content."""
    path = signed_folder(places, product) / f"{hex_of(digest_bytes(envelope.encode()))[:16]}.json"
    write_atomically(path, envelope)
    return path


def load_answers(places: Places, product: str) -> tuple[tuple[Signed, ...], tuple[Signed, ...]]:
    """`(waivers, statements)` of a product, in the order of file names.

    Raises:
        ProvenanceError: A file is damaged.
    """
    files = sorted(signed_folder(places, product).glob("*.json"))
    found = [_read_answer(path, product=product) for path in files]
    return tuple(item for item in found if item.candidate), tuple(item for item in found if not item.candidate)


def _read_answer(path: Path, *, product: str) -> Signed:
    try:
        return parse_answer(path.read_text(encoding="utf-8"), product=product)
    except (ProvenanceError, UnicodeDecodeError) as error:
        raise ProvenanceError(
            f"{path}: {error}", hint=f"`git checkout -- {path}`, or delete it and sign again with `mlops gate sign`"
        ) from error
