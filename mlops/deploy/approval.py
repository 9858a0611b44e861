"""Approvals: a person says yes to one image in one environment, signed with their own key.

An approval is an in-toto statement about the image's digest in a DSSE envelope. Nothing in it is believed but what the
signature binds: the person is whoever `deploy/roles.yaml` gives the signing key to.
Leaves to others: how many are needed (promotion.py) and where they are kept (sql_deployments.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from mlops.deploy.roles import RolesSpec
from mlops.errors import ProvenanceError
from mlops.provenance.digest import DIGEST_PATTERN, canonical_json
from mlops.provenance.dsse import IN_TOTO_TYPE, parse_envelope, sign_envelope
from mlops.provenance.ed25519 import SigningKey
from mlops.provenance.statement import STATEMENT_TYPE

PREDICATE_TYPE = "urn:mlops:attestation:approval:v1"
Purpose = Literal["promotion", "erasure"]
"""`promotion`: this image; `erasure`: standing, any retrain after an erasure that passed the gate."""


@dataclass(frozen=True)
class Approval:
    """What somebody says yes to."""

    approval_id: str
    purpose: Purpose
    product: str
    environment: str
    number: int
    """Model version."""
    image: str
    """`sha256:…`; for a standing approval the image that was seen when it was signed."""
    gate: str
    """`sha256:…` of the gate's result that the approver had before them."""
    issued_us: int
    reason: str


@dataclass(frozen=True)
class SignedApproval:
    """An approval as found: whose it is, or what is wrong with it."""

    approval: Approval | None
    person: str | None
    public_key: str | None
    problem: tuple[str, str] | None
    """Code and sentence; None when signature, key and person hold."""


def sign_approval(approval: Approval, *, key: SigningKey) -> str:
    """The approval in an envelope, as JSON text."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": f"{approval.product}@{approval.number}",
                "digest": {"sha256": approval.image.removeprefix("sha256:")},
            }
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "approval_id": approval.approval_id,
            "purpose": approval.purpose,
            "product": approval.product,
            "environment": approval.environment,
            "number": approval.number,
            "gate": approval.gate,
            "issued_us": approval.issued_us,
            "reason": approval.reason,
        },
    }
    return sign_envelope(canonical_json(statement), payload_type=IN_TOTO_TYPE, keys=(key,))


def parse_approval(payload: bytes) -> Approval:
    """The approval in a statement.

    Raises:
        ProvenanceError: It is not the statement of an approval.
    """
    try:
        value = json.loads(payload)
        predicate = value["predicate"]
        (subject,) = value["subject"]
        if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("another kind of statement")
        purpose: Purpose = "erasure" if predicate["purpose"] == "erasure" else "promotion"
        approval = Approval(
            approval_id=str(predicate["approval_id"]),
            purpose=purpose,
            product=str(predicate["product"]),
            environment=str(predicate["environment"]),
            number=int(predicate["number"]),
            image=f"sha256:{subject['digest']['sha256']}",
            gate=str(predicate["gate"]),
            issued_us=int(predicate["issued_us"]),
            reason=str(predicate["reason"]),
        )
        if not DIGEST_PATTERN.fullmatch(approval.image) or predicate["purpose"] not in ("promotion", "erasure"):
            raise ValueError("malformed")
    except (ValueError, KeyError, TypeError) as error:
        raise ProvenanceError(f"not the statement of an approval: {error!r}") from error
    return approval


def read_approval(envelope: str, *, roles: RolesSpec, role: str, now_us: int) -> SignedApproval:
    """Check signature, key, person and role of one envelope; a flaw is named, never raised.

    Args:
        envelope: As kept.
        roles: Whose keys count.
        role: What the person must be.
        now_us: Decides whether the key still counts.
    """
    try:
        parsed = parse_envelope(envelope)
        signers = parsed.valid_signers()
        approval = parse_approval(parsed.payload)
    except ProvenanceError as error:
        return SignedApproval(None, None, None, ("approval-damaged", error.message))
    if len(signers) != 1:
        text = f"approval {approval.approval_id} is not signed by exactly one valid key"
        return SignedApproval(approval, None, None, ("approval-signature-wrong", text))
    owner = roles.person_of_key(signers[0])
    if owner is None:
        text = f"approval {approval.approval_id} is signed by {signers[0]}, which deploy/roles.yaml gives to nobody"
        return SignedApproval(approval, None, signers[0], ("approval-key-unknown", text))
    person, key = owner
    problem: tuple[str, str] | None = None
    if not key.is_valid_at(now_us):
        problem = ("approval-key-expired", f"the key of {person} counted until {key.until}; sign with a current one")
    elif role not in roles.people[person].roles:
        problem = ("approval-role-missing", f"{person} has not the role {role} in deploy/roles.yaml")
    return SignedApproval(approval, person, signers[0], problem)
