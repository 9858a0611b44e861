"""The serving image of a product: from a candidate folder and a spec to an image in the project's OCI layout.

Layers, lowest first: `base` (Debian packages), `runtime` (wheels), `cuda` and `torch` (where they are asked for), `app`
(our server), `model` (ONNX, contract, golden requests, digests of the evidence). The same inputs give the same digest.
Leaves to others: how layers are filled (layers.py), blobs and index (oci_layout.py), trying it out (probe.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mlops.specs import Spec

_BASE = re.compile(r".+/.+@sha256:[0-9a-f]{64}")


class ImageSpec(Spec):
    """The `image:` part of `deploy/<product>.yaml`."""

    base: str = "debian"
    """`debian` (packages locked by digest) or `registry/repository@sha256:…`."""
    compression: Literal["zstd", "gzip"] = "zstd"
    """`gzip` for registries that know no zstd; the model layer is then stored without compression."""
    accelerator: Literal["none", "cuda"] = "none"
    """`cuda` adds a layer with onnxruntime for GPUs and NVIDIA's libraries, the same one for all such images."""
    runtime: Literal["onnx", "torch"] = "onnx"
    """`torch` adds a layer with torch (130 MB) for models that do not export; any other model is refused then."""
    builder: Literal["mlops", "buildah"] = "mlops"
    """`buildah` has Debian's buildah assemble the same layers, for platforms that ask for it; another digest."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Added to the image's environment, such as `MAX_BATCH_ROWS`; names, never secrets."""

    @field_validator("base")
    @classmethod
    def _is_fixed(cls, base: str) -> str:
        if base != "debian" and not _BASE.fullmatch(base):
            raise ValueError("write `debian`, or `registry/repository@sha256:` and a digest: tags may change")
        return base

    @model_validator(mode="after")
    def _goes_together(self) -> ImageSpec:
        # buildah would have to unpack foreign layers, whose owners and deletions it reads by other rules than ours
        if self.builder == "buildah" and self.base != "debian":
            raise ValueError("`builder: buildah` works with `base: debian` only; leave one of them out")
        if self.runtime == "torch" and self.accelerator != "none":
            raise ValueError("`runtime: torch` computes on processors; leave `accelerator` out")
        return self


@dataclass(frozen=True)
class ImageRequest:
    """What an image is made of."""

    candidate_folder: Path
    """Holds `contract.json` and the artefact that was judged."""
    product: str
    version: str
    """Number of the model version, as text."""
    evidence: Mapping[str, str]
    """Name to `sha256:…` (candidate, gate, version, manifest, code): stands in the image and its annotations."""
    spec: ImageSpec
    layout: Path
    """`places.images`."""
    downloads: Path
    """`places.downloads`."""
    cache: Path
    """`places.cache`."""
    wheel_locks: Mapping[str, Path] = field(default_factory=dict)
    """Wheels of the optional layers, by layer; those that ship with `mlops` where none is named."""
    say: Callable[[str], None] = field(default=lambda line: None)
    """Told one line per thing that takes long."""


@dataclass(frozen=True)
class BuiltLayer:
    """One layer of an image."""

    name: str
    """`base`, `runtime`, `cuda`, `torch`, `app`, `model`."""
    digest: str
    """`sha256:…` of the compressed blob."""
    diff_id: str
    """`sha256:…` of the tar."""
    compressed_bytes: int
    media_type: str
    is_reused: bool
    """Taken from the layout as it was."""
    reason: str
    """Why it was built, or why it could be reused."""


@dataclass(frozen=True)
class BuiltImage:
    """An image in the layout."""

    digest: str
    """`sha256:…` of its manifest; what every other room calls the image."""
    reference: str
    """`<product>:<version>`."""
    layers: tuple[BuiltLayer, ...]
    compressed_bytes: int
    """All blobs: layers, config, manifest."""
    notes: tuple[str, ...]
    """What people should know: packages that were not the locked ones, for instance."""


def build_image(request: ImageRequest) -> BuiltImage:
    """Build or rebuild; what did not change is not touched.

    Raises:
        ServingError: The candidate is incomplete, or a package is neither stored nor to be had.
        EnvironmentFault: The disk is full, or the machine cannot provide the base.
    """
    from mlops.serving.image_build import build  # the writer pulls in onnxruntime and zstandard

    return build(request)
