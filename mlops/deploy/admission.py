"""The choke point: nothing starts or gets traffic in an environment unless `admit` lets it.

Promotion, reconcile, rollback and every single start call it. It holds that a signed promotion of this very image into
this environment stands in the ledger, that the image has not failed here since, and that each of its bytes is as built.
Leaves to others: whether it should be promoted (promotion.py) and whether it answers well (instance_check.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mlops.clock import render_time
from mlops.deploy import sql_deployments
from mlops.errors import MlopsError, ProvenanceError, Reason, Refusal
from mlops.places import Places
from mlops.provenance.dsse import parse_envelope
from mlops.provenance.keyring import KeyRing
from mlops.provenance.sql_steps import StepRecord, find_steps_of_digest
from mlops.provenance.statement import parse_statement
from mlops.serving.oci_layout import ImageLayout, verify_blob

PROMOTION_STEP = "promotion"
ROLLBACK_STEP = "rollback"


@dataclass(frozen=True)
class Admission:
    """An image that may serve in an environment."""

    image: str
    environment: str
    number: int
    step_id: str
    """The signed promotion it rests on."""


def admit(
    connection: sa.Connection,
    image: str,
    *,
    environment: str,
    places: Places,
    keyring: KeyRing,
    are_bytes_checked: bool = True,
) -> Admission | Refusal:
    """May this image serve here now?

    Args:
        connection: The ledger.
        image: `sha256:…` of its manifest; names and tags decide nothing.
        environment: Where.
        places: Holds the image layout.
        keyring: Whose signatures count.
        are_bytes_checked: Hash every blob again; left out only for what already runs and was hashed when it started.
    """
    reasons: list[Reason] = []
    step = find_promotion(connection, image, environment=environment, keyring=keyring)
    if step is None:
        text = f"no valid signed promotion of {image} into {environment}; use `mlops promote`"
        reasons.append(Reason("not-admitted", text))
    barred = sql_deployments.load_barred(connection, environment).get(image)
    if barred is not None:
        text = f"{image[:19]} failed in {environment} at {render_time(barred.at_us)}: {barred.why}"
        reasons.append(Reason("barred", text))
    damage = find_image_damage(places, image) if are_bytes_checked else None
    if damage is not None:
        reasons.append(Reason("image-changed", damage))
    if reasons or step is None:
        return Refusal(tuple(reasons))
    return Admission(image=image, environment=environment, number=int(step.facts["number"]), step_id=step.step_id)


def find_promotion(connection: sa.Connection, image: str, *, environment: str, keyring: KeyRing) -> StepRecord | None:
    """The newest promotion of an image into an environment whose signature holds."""
    for step in find_steps_of_digest(connection, image, direction="in"):
        if step.kind != PROMOTION_STEP or step.facts.get("environment") != environment:
            continue
        if step.inputs.get("image") == image and find_signature_flaw(step, keyring=keyring) is None:
            return step
    return None


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


def find_image_damage(places: Places, image: str) -> str | None:
    """Why the stored image is not the one with that digest; None when every byte is."""
    layout = ImageLayout(places.images)
    try:
        manifest = layout.read_manifest(image)
        for part in (manifest["config"], *manifest["layers"]):
            verify_blob(layout, part["digest"])
    except MlopsError as error:
        return error.message
    except (ValueError, KeyError, TypeError):
        return f"{image} in {layout.folder} is not an image"
    return None
