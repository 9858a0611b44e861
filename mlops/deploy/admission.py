"""The choke point: nothing starts or gets traffic in an environment unless `admit` lets it.

Promotion, reconcile, rollback and every single start call it. It holds that a signed promotion of this very image into
this environment stands in the ledger, that the image has not failed here since and was not purged for a withdrawn
person's sake, that no restore is under way, and that each of its bytes is as built.
Leaves to others: whether it should be promoted (promotion.py) and whether it answers well (instance_check.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from mlops.clock import render_time
from mlops.deploy import sql_deployments
from mlops.deploy.erased import load_erased
from mlops.deploy.signatures import find_signature_flaw
from mlops.errors import MlopsError, Reason, Refusal
from mlops.places import Places
from mlops.provenance.keyring import KeyRing
from mlops.provenance.sql_steps import StepRecord, find_steps_of_digest
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
    erased = load_erased(connection, keyring=keyring).get(image)
    if erased is not None:
        reasons.append(erased.reason)
    if places.restore_marker.exists():
        text = f"{places.restore_marker} says that a restore was not finished; run `mlops restore` again"
        reasons.append(Reason("restore-unfinished", text))
    damage = find_image_damage(places, image) if are_bytes_checked and erased is None else None
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
