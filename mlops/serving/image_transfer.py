"""Images between the project's layout and a registry, digest for digest; evidence attached as referrers.

Leaves to others: the protocol (oci_registry.py), what the evidence says (verification.py, probe.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import ServingError
from mlops.provenance.digest import canonical_json, digest_bytes
from mlops.serving.oci_layout import MANIFEST_TYPE, ImageLayout, verify_blob
from mlops.serving.oci_registry import RegistryClient, RegistryReference

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    digest: str
    reference: str
    uploaded_bytes: int
    skipped_blobs: int
    """Those that the registry had already."""


def push_image(
    layout_folder: Path,
    digest: str,
    *,
    target: RegistryReference,
    client: RegistryClient | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pushed:
    """Push every blob that is missing there, then the manifest.

    Raises:
        ServingError: A blob is missing or corrupt here, or the registry refuses.
    """
    layout = ImageLayout(layout_folder)
    used = client or RegistryClient(target.registry, target.repository)
    manifest = layout.read_manifest(digest)
    uploaded, skipped = 0, 0
    for part in (*manifest["layers"], manifest["config"]):
        verify_blob(layout, part["digest"])
        if used.push_blob(layout.blob_path(part["digest"]), digest=part["digest"]):
            uploaded += part["size"]
            say(f"pushed {part['digest'][:19]} ({part['size'] / 1e6:.1f} MB)")
        else:
            skipped += 1
    content = layout.read_blob(digest)
    used.push_manifest(content, target=target.tag or digest, media_type=MANIFEST_TYPE)
    name = f"{target.registry}/{target.repository}{f':{target.tag}' if target.tag else ''}@{digest}"
    return Pushed(digest=digest, reference=name, uploaded_bytes=uploaded, skipped_blobs=skipped)


def pull_image(
    layout_folder: Path,
    source: RegistryReference,
    *,
    reference: str,
    client: RegistryClient | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Bring an image into the layout under `reference`; returns its digest. What is there already is not fetched.

    Raises:
        ServingError: It is not there, is not an image, or is not what its digests say.
    """
    layout = ImageLayout(layout_folder)
    used = client or RegistryClient(source.registry, source.repository)
    content = pull_blobs(layout, source, client=used, say=say)
    digest = layout.add_blob(content)
    layout.name_image(digest, reference=reference, size=len(content))
    return digest


def pull_blobs(
    layout: ImageLayout, source: RegistryReference, *, client: RegistryClient, say: Callable[[str], None]
) -> bytes:
    """Bring every blob of an image; returns its manifest, which is not stored yet.

    Raises:
        ServingError: as `pull_image`.
    """
    content = _pull_manifest(client, source.target)
    manifest = json.loads(content)
    for part in (manifest["config"], *manifest["layers"]):
        path = layout.blob_path(part["digest"])
        if path.is_file() and path.stat().st_size == part["size"]:
            continue
        aside = layout.folder / "blobs" / "sha256" / f".pull-{path.name}"
        client.pull_blob(part["digest"], target=aside, size=part["size"])
        aside.replace(path)
        say(f"pulled {part['digest'][:19]} ({part['size'] / 1e6:.1f} MB)")
    return content


def attach_evidence(
    content: bytes,
    *,
    media_type: str,
    image: str,
    image_size: int,
    client: RegistryClient,
    annotations: Mapping[str, str],
    scratch: Path,
) -> str:
    """Push a file as an artifact that refers to an image; returns the artifact's digest.

    Raises:
        ServingError: The registry refuses.
    """
    for blob in (content, _EMPTY):
        path = scratch / digest_bytes(blob).removeprefix("sha256:")
        path.write_bytes(blob)
        client.push_blob(path, digest=digest_bytes(blob))
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": media_type,
            "config": {"mediaType": _EMPTY_TYPE, "digest": digest_bytes(_EMPTY), "size": len(_EMPTY)},
            "layers": [{"mediaType": media_type, "digest": digest_bytes(content), "size": len(content)}],
            "subject": {"mediaType": MANIFEST_TYPE, "digest": image, "size": image_size},
            "annotations": dict(annotations),
        }
    )
    descriptor = {
        "mediaType": MANIFEST_TYPE,
        "digest": digest_bytes(manifest),
        "size": len(manifest),
        "artifactType": media_type,
        "annotations": dict(annotations),
    }
    client.push_referrer(manifest, descriptor=descriptor, subject=image)
    return digest_bytes(manifest)


def _pull_manifest(client: RegistryClient, target: str) -> bytes:
    """The image manifest, through an index of platforms where there is one."""
    content = client.pull_manifest(target)
    if content is None:
        raise ServingError(f"{client.registry}/{client.repository} has no {target}")
    manifest = json.loads(content)
    if "manifests" in manifest:
        for entry in manifest["manifests"]:
            platform = entry.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
                return _pull_manifest(client, entry["digest"])
        raise ServingError(f"{client.registry}/{client.repository}:{target} has no image for linux/amd64")
    if "layers" not in manifest or "config" not in manifest:
        raise ServingError(f"{client.registry}/{client.repository}:{target} is not an image")
    return content
