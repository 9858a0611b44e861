"""The release step `image`: a registered model version becomes a serving image.

Leaves to others: building (image.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mlops.errors import ServingError
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_json, hex_of
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.serving.deploy_spec import load_deploy_spec
from mlops.serving.image import BuiltImage, ImageRequest, build_image
from mlops.serving.oci_layout import ImageLayout

KIND = "image"


def image_step(bench: Workbench, *, product: str, candidate: str, gate: str, number: int) -> StepRun:
    """Build once per candidate, gate result, version and image spec.

    Args:
        bench: What steps work with.
        product: What is served.
        candidate: Digest of the candidate.
        gate: Digest of the gate result that let it pass.
        number: Number of the model version.

    Raises:
        ServingError: The candidate is incomplete, or a package cannot be had.
        EnvironmentFault: The machine cannot provide the base layer.
    """
    places = bench.places
    say: Callable[[str], None] = lambda line: bench.say(f"      {line}")  # noqa: E731
    request = image_request(places, product=product, candidate=candidate, gate=gate, number=number, say=say)

    def build() -> StepOutcome:
        built = build_image(request)
        return StepOutcome(outputs={"image": built.digest}, facts=_facts(built, number=number))

    def is_present(record: StepRecord) -> bool:
        return ImageLayout(places.images).is_complete(record.outputs["image"])

    inputs = {
        "candidate": candidate,
        "gate": gate,
        "version": request.evidence["version"],
        "deploy_spec": digest_json(request.spec.model_dump(mode="json")),
        "code": digest_code("mlops.serving"),
    }
    return bench.book.run(KIND, product=product, inputs=inputs, action=build, is_present=is_present)


def image_request(
    places: Places, *, product: str, candidate: str, gate: str, number: int, say: Callable[[str], None]
) -> ImageRequest:
    """What the image of a registered version is made of; the arguments are those of `image_step`.

    Raises:
        ServingError: The candidate is not on this machine.
    """
    folder = places.candidates / hex_of(candidate)
    try:
        contract = json.loads((folder / "contract.json").read_bytes())
    except OSError as error:
        raise ServingError(
            f"candidate {candidate[:19]} of {product}@{number} is not in {places.candidates}",
            hint=f"`mlops release {product}` makes it again",
        ) from error
    version = digest_json({"product": product, "number": number, "candidate": candidate, "gate": gate})
    return ImageRequest(
        candidate_folder=folder,
        product=product,
        version=str(number),
        evidence={
            "candidate": candidate,
            "gate": gate,
            "version": version,
            "manifest": contract["dataset"]["digest"],
        },
        spec=load_deploy_spec(places, product).image,
        layout=places.images,
        downloads=places.downloads,
        cache=places.cache,
        say=say,
    )


def _facts(built: BuiltImage, *, number: int) -> dict[str, object]:
    megabytes = built.compressed_bytes / 1e6
    return {
        "summary": f"{built.reference} {built.digest[:19]}, {megabytes:.1f} MB",
        "number": number,
        "reference": built.reference,
        "bytes": built.compressed_bytes,
        "notes": list(built.notes),
    }
