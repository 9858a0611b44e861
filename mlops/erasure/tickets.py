"""Requests that tenants send, signed: who may ask is decided by the signature, and each asking counts once.

The one place where a raw subject id comes in from outside; it is hashed at once and stands in no message.
Leaves to others: recording (requests.py, which refuses a nonce seen before), transport and rate (intake.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from mlops.clock import SECOND_US
from mlops.deploy.erasure_rules import ErasureSpec, TenantSpec
from mlops.errors import ProvenanceError, Reason, Refusal
from mlops.provenance.digest import canonical_json
from mlops.provenance.dsse import parse_envelope, sign_envelope
from mlops.provenance.ed25519 import SigningKey

PAYLOAD_TYPE = "application/vnd.mlops.erasure-request.v1+json"
LIFETIME_US = 300 * SECOND_US
"""A ticket is accepted this long before and after the time it was signed."""
_LONGEST = 1_024
"""Letters of an id or a nonce."""


@dataclass(frozen=True)
class Ticket:
    """A request whose signature holds."""

    tenant: str
    dataset: str
    subject_id: str = field(repr=False)
    nonce: str
    rules: TenantSpec

    @property
    def channel(self) -> str:
        """Where it came from, as requests name it."""
        return f"tenant:{self.tenant}"


def sign_ticket(*, tenant: str, dataset: str, subject_id: str, nonce: str, issued_us: int, key: SigningKey) -> str:
    """What a tenant sends."""
    content = {"tenant": tenant, "dataset": dataset, "subject": subject_id, "nonce": nonce, "issued_us": issued_us}
    return sign_envelope(canonical_json({"version": 1, **content}), payload_type=PAYLOAD_TYPE, keys=(key,))


def read_ticket(text: bytes, rules: ErasureSpec, *, now_us: int) -> Ticket | Refusal:
    """The ticket, or one refusal that says the same whatever is wrong with key, tenant or signature.

    Args:
        text: The envelope.
        rules: Names tenants and their keys.
        now_us: The time.
    """
    not_accepted = Refusal(
        (Reason("not-accepted", "the request is not signed by a key that may ask for this dataset"),)
    )
    try:
        envelope = parse_envelope(text)
        content = json.loads(envelope.payload)
        names = ("tenant", "dataset", "subject", "nonce")
        tenant, dataset, subject_id, nonce = (content[name] for name in names)
        issued_us = int(content["issued_us"])
        fields = (tenant, dataset, subject_id, nonce)
        if canonical_json(content) != envelope.payload or content["version"] != 1:
            raise ValueError("not canonical")
        if not all(isinstance(it, str) and 0 < len(it) <= _LONGEST for it in fields):
            raise ValueError("a field is empty, too long or no text")
    except (ProvenanceError, ValueError, KeyError, TypeError):
        return Refusal((Reason("malformed", "not a signed request as docs/erasure.md describes it"),))
    known = rules.tenants.get(tenant)
    signers = envelope.valid_signers()
    if envelope.payload_type != PAYLOAD_TYPE or known is None or not set(signers) & set(known.keys):
        return not_accepted
    if known.datasets and dataset not in known.datasets:
        return not_accepted
    if abs(now_us - issued_us) > LIFETIME_US:
        return Refusal((Reason("too-old", "the request was signed too long ago, or in the future; sign a new one"),))
    return Ticket(tenant, dataset, subject_id, nonce, known)
