"""The bill of materials of an image: CycloneDX 1.6 with every package, and each model as a machine-learning component.

Written as JSON here, since the common library drops model cards; validated by its strict validator.
Leaves to others: finding the parts (inventory.py).
"""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import quote

from mlops.errors import ServingError
from mlops.provenance.digest import canonical_json, hex_of
from mlops.serving.inventory import Inventory, Package, ServedModel

_SPEC_VERSION = "1.6"
MEDIA_TYPE = "application/vnd.cyclonedx+json"


def render_sbom(inventory: Inventory) -> bytes:
    """The document, canonical: the same image gives the same bytes."""
    parts = [*map(_package_component, inventory.packages), *map(_model_component, inventory.models)]
    image = {
        "type": "container",
        "bom-ref": inventory.digest,
        "name": ", ".join(sorted({model.product for model in inventory.models})) or "image",
        "version": inventory.digest,
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.UUID(hex_of(inventory.digest)[:32], version=4)}",
        "version": 1,
        "metadata": {"component": image},
        "components": parts,
        "dependencies": [{"ref": inventory.digest, "dependsOn": sorted(str(part["bom-ref"]) for part in parts)}],
    }
    return canonical_json(document)


def validate_sbom(content: bytes) -> None:
    """Strictly: a field that CycloneDX does not know is an error.

    Raises:
        ServingError: It is not valid.
    """
    from cyclonedx.schema import SchemaVersion  # loads the schemas
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode())
    if problem is not None:
        raise ServingError(f"the bill of materials is not valid CycloneDX {_SPEC_VERSION}: {problem}"[:500])


def _package_component(package: Package) -> dict[str, Any]:
    if package.kind == "deb":
        reference = f"pkg:deb/debian/{quote(package.name)}@{quote(package.version)}?distro=debian-12"
    else:
        reference = f"pkg:pypi/{quote(package.name)}@{quote(package.version)}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        "purl": reference,
    }
    if package.licence:
        found["licenses"] = [{"license": {"name": package.licence}}]
    return found


def _model_component(model: ServedModel) -> dict[str, Any]:
    reference = f"model:{model.product}@{model.version}"
    hashes = [{"name": f"io.mlops.evidence.{name}", "value": digest} for name, digest in sorted(model.evidence.items())]
    inputs = [{"format": json.dumps(column, sort_keys=True)} for column in model.contract["inputs"]]
    outputs = [{"format": json.dumps(output, sort_keys=True)} for output in model.contract["outputs"]]
    dataset = model.contract["dataset"]
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": model.product,
        "version": model.version,
        "properties": hashes,
        "modelCard": {
            "modelParameters": {
                "task": "classification",
                "inputs": inputs,
                "outputs": outputs,
                "datasets": [
                    {
                        "type": "dataset",
                        "name": dataset["name"],
                        "contents": {"properties": [{"name": "digest", "value": dataset["digest"]}]},
                    }
                ],
            },
            "properties": [{"name": "classes", "value": json.dumps(model.contract["classes"])}],
        },
    }
