"""A base image from a registry instead of Debian packages: `base: registry/repository@sha256:…`.

Leaves to others: the layers above it (image_build.py), the protocol (oci_registry.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable

from mlops.errors import ServingError
from mlops.serving.image import BuiltLayer
from mlops.serving.image_transfer import pull_blobs
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.oci_registry import RegistryClient, parse_registry_reference
from mlops.serving.oci_unpack import layer_members, open_layer

_INTERPRETER = "usr/bin/python3.11"


def pull_base(reference: str, *, layout: ImageLayout, say: Callable[[str], None]) -> tuple[BuiltLayer, ...]:
    """The layers of a base image, brought into the layout as they are.

    Raises:
        ServingError: It is not there, or holds no `/usr/bin/python3.11`, which the wheels are made for.
    """
    named = parse_registry_reference(reference)
    present = named.digest is not None and layout.is_complete(named.digest)
    if not present:
        say(f"pulling the base image {reference}")
    client = RegistryClient(named.registry, named.repository)
    content = layout.read_blob(named.target) if present else pull_blobs(layout, named, client=client, say=say)
    manifest = json.loads(content)
    layout.add_blob(content)
    diff_ids = json.loads(layout.read_blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"]
    if not any(_holds_interpreter(layout, layer) for layer in manifest["layers"]):
        raise ServingError(f"the base image {reference} has no /{_INTERPRETER}", hint="use a Debian 12 Python image")
    return tuple(
        BuiltLayer(
            name="base",
            digest=layer["digest"],
            diff_id=diff_id,
            compressed_bytes=layer["size"],
            media_type=layer["mediaType"].replace(
                "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"
            ),
            is_reused=present,
            reason=f"as {reference} says",
        )
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    )


def _holds_interpreter(layout: ImageLayout, layer: dict[str, str]) -> bool:
    media_type = layer["mediaType"].replace("docker.image.rootfs.diff.tar.gzip", "oci.image.layer.v1.tar+gzip")
    with open_layer(layout.blob_path(layer["digest"]), media_type=media_type) as stream:
        return any(member.name.removeprefix("./") == _INTERPRETER for _, member in layer_members(stream))
