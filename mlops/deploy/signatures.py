"""Whether a step's attestation counts: signed, by a key that counts, and saying what the ledger's row says.

Leaves to others: whose keys count (chain_rules.py) and whole chains (mlops/provenance/verify.py).
"""

from __future__ import annotations

from mlops.errors import ProvenanceError
from mlops.provenance.dsse import parse_envelope
from mlops.provenance.keyring import KeyRing
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.statement import parse_statement


def find_signature_flaw(step: StepRecord, *, keyring: KeyRing) -> str | None:
    """Why a step's attestation does not count; None when it does."""
    if step.envelope is None:
        return "it carries no attestation"
    try:
        envelope = parse_envelope(step.envelope)
        stated = parse_statement(envelope.payload, envelope=step.envelope)
    except ProvenanceError as error:
        return error.message
    signers = envelope.valid_signers()
    if not signers:
        return "its signature does not fit"
    objections = [keyring.find_objection(signer, signed_us=stated.finished_us) for signer in signers]
    texts = [objection.text for objection in objections if objection is not None]
    if texts:
        return "; ".join(texts)
    return None if stated == step else "the ledger's row differs from the signed statement"
