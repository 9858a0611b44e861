"""`deploy/<product>.yaml`: how the serving image of a product is made.

Leaves to others: where it runs (deploy/environments/) and who calls it (deploy/consumers/).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlops.errors import ProjectError
from mlops.places import Places
from mlops.serving.image import ImageSpec
from mlops.specs import Spec, load_spec


class DeploySpec(Spec):
    """The file as a whole."""

    version: Literal[1]
    product: str
    image: ImageSpec = Field(default_factory=ImageSpec)


def load_deploy_spec(places: Places, product: str) -> DeploySpec:
    """The file of a product.

    Raises:
        ProjectError: Absent, malformed, or of another product.
    """
    path = places.deploy_file(product)
    spec = load_spec(path, DeploySpec)
    if spec.product != product:
        raise ProjectError(f"{path} is about {spec.product!r}", hint=f"write `product: {product}`")
    return spec
