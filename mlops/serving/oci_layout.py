"""An OCI image layout on disk: blobs by digest, and an `index.json` that is written last.

Whoever reads the index sees only images whose blobs are all there. Writers in several processes take turns.
Leaves to others: what blobs hold (image_build.py), registries (oci_registry.py), which images to keep (retention.py).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock

from mlops.errors import EnvironmentFault, ServingError
from mlops.files import write_atomically
from mlops.provenance.digest import canonical_json, digest_bytes, digest_file, hex_of

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
REFERENCE_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class StoredImage:
    """One image named by the index."""

    reference: str
    """`<product>:<version>`; empty when it has no name."""
    digest: str
    """Of its manifest."""
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class ImageLayout:
    """The layout in one folder, made when something is written to it."""

    folder: Path

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies, or would lie."""
        return self.folder / "blobs" / "sha256" / hex_of(digest)

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there; its content is checked by whoever reads it."""
        return self.blob_path(digest).is_file()

    def read_blob(self, digest: str) -> bytes:
        """A small blob, checked.

        Raises:
            ServingError: It is missing, or does not match its digest.
        """
        try:
            content = self.blob_path(digest).read_bytes()
        except FileNotFoundError as error:
            raise ServingError(f"{self.folder} has no blob {digest}", hint="build or pull the image again") from error
        if digest_bytes(content) != digest:
            raise ServingError(f"blob {digest} in {self.folder} is corrupt", hint="delete it and build again")
        return content

    def read_manifest(self, digest: str) -> dict[str, Any]:
        """The manifest of an image.

        Raises:
            ServingError: Missing, corrupt, or not an image manifest.
        """
        content = json.loads(self.read_blob(digest))
        if not isinstance(content, dict) or not isinstance(content.get("layers"), list) or "config" not in content:
            raise ServingError(f"{digest} in {self.folder} is not an image manifest")
        return content

    def add_blob(self, content: bytes) -> str:
        """Store bytes; returns their digest."""
        digest = digest_bytes(content)
        if not self.has_blob(digest) or self.blob_path(digest).stat().st_size != len(content):
            write_atomically(self.blob_path(digest), content)
        return digest

    @contextmanager
    def new_blob(self) -> Iterator[tuple[IO[bytes], list[str]]]:
        """A stream to write a large blob to; append its digest to the list before the block ends.

        Raises:
            EnvironmentFault: The disk is full.
        """
        blobs = self.folder / "blobs" / "sha256"
        names: list[str] = []
        aside = ""
        try:
            blobs.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(prefix=".new-", dir=blobs)
            with os.fdopen(handle, "wb") as stream:
                yield stream, names
                stream.flush()
                os.fsync(stream.fileno())
            Path(aside).chmod(0o644)
            Path(aside).replace(self.blob_path(names[0]))
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write a blob in {blobs}: {error.strerror}", hint="free disk space"
            ) from error
        finally:
            if aside:
                Path(aside).unlink(missing_ok=True)

    def images(self) -> tuple[StoredImage, ...]:
        """Every image that the index names, sorted by reference."""
        found = [
            StoredImage(
                reference=str(entry.get("annotations", {}).get(REFERENCE_NAME, "")),
                digest=str(entry["digest"]),
                annotations=dict(entry.get("annotations", {})),
            )
            for entry in self._read_index()["manifests"]
        ]
        return tuple(sorted(found, key=lambda image: (image.reference, image.digest)))

    def find(self, reference: str) -> StoredImage | None:
        """The image with this reference or digest."""
        return next((image for image in self.images() if reference in (image.reference, image.digest)), None)

    def is_complete(self, digest: str) -> bool:
        """Whether an image's manifest, config and layers are all there, with their sizes."""
        try:
            manifest = self.read_manifest(digest)
        except ServingError:
            return False
        parts = [manifest["config"], *manifest["layers"]]
        paths = [(self.blob_path(part["digest"]), part["size"]) for part in parts]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def size_of(self, digest: str) -> int:
        """Bytes of an image's manifest, config and layers together."""
        manifest = self.read_manifest(digest)
        return self.blob_path(digest).stat().st_size + sum(
            int(part["size"]) for part in (manifest["config"], *manifest["layers"])
        )

    def put_image(self, manifest: Mapping[str, Any], *, reference: str, annotations: Mapping[str, str]) -> str:
        """Store a manifest and name it in the index, replacing what had that name; returns the manifest's digest.

        Every blob it names must be there already.

        Raises:
            ServingError: A blob is missing.
        """
        for part in (manifest["config"], *manifest["layers"]):
            if not self.has_blob(part["digest"]):
                raise ServingError(f"{reference}: blob {part['digest']} is missing, the image is not recorded")
        content = canonical_json(manifest)
        digest = self.add_blob(content)
        self.name_image(digest, reference=reference, size=len(content), annotations=annotations)
        return digest

    def name_image(
        self, digest: str, *, reference: str, size: int, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Let `reference` mean the image with this manifest, whose blobs are all here."""
        entry = {
            "mediaType": MANIFEST_TYPE,
            "digest": digest,
            "size": size,
            "annotations": {**(annotations or {}), REFERENCE_NAME: reference},
        }
        with self.locked():
            index = self._read_index()
            kept = [old for old in index["manifests"] if old.get("annotations", {}).get(REFERENCE_NAME) != reference]
            self._write_index([*kept, entry])

    def remove_unused_blobs(self, *, keeping: Collection[str] = (), older_than_seconds: float = 3_600) -> int:
        """Delete blobs that no image names; returns the bytes freed.

        Args:
            keeping: Digests of images that stay though a newer build of their version took their name.
            older_than_seconds: Younger ones are left: a build that is under way has written its layers, not its index.
        """
        freed = 0
        with self.locked():
            used: set[str] = set()
            for image in self.images():
                manifest = self.read_manifest(image.digest)
                used |= {image.digest, manifest["config"]["digest"], *(part["digest"] for part in manifest["layers"])}
            used |= {part for digest in keeping for part in (digest, *self._parts(digest))}
            names = {hex_of(digest) for digest in used}
            newest = time.time() - older_than_seconds
            for path in sorted((self.folder / "blobs" / "sha256").glob("*")):
                if path.name not in names and path.stat().st_mtime < newest:
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def remove_images(self, digests: set[str]) -> None:
        """Forget images; their blobs go with `remove_unused_blobs`."""
        with self.locked():
            self._write_index([entry for entry in self._read_index()["manifests"] if entry["digest"] not in digests])

    def purge_images(self, digests: Collection[str]) -> dict[str, int]:
        """Forget images and delete at once every blob of theirs that no other image uses.

        Names go first, then layers and configuration, the manifest last: after a kill the next call finds the rest.

        Returns:
            Digest of each image that was here to the bytes it freed.
        """
        freed: dict[str, int] = {}
        with self.locked():
            gone = {image.digest for image in self.images()} & set(digests)
            self._write_index([entry for entry in self._read_index()["manifests"] if entry["digest"] not in digests])
            kept = {part for image in self.images() for part in (image.digest, *self._parts(image.digest))}
            for digest in sorted(set(digests)):
                if digest not in gone and not self.has_blob(digest):
                    continue
                paths = [self.blob_path(part) for part in (*self._parts(digest), digest) if part not in kept]
                sizes = [path.stat().st_size for path in paths if path.is_file()]
                for path in paths:
                    path.unlink(missing_ok=True)
                freed[digest] = sum(sizes)
        return freed

    def _parts(self, digest: str) -> tuple[str, ...]:
        """Configuration and layers of an image; of one whose manifest is damaged, none."""
        try:
            manifest = self.read_manifest(digest)
        except (ServingError, ValueError):
            return ()
        return (manifest["config"]["digest"], *(part["digest"] for part in manifest["layers"]))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer of the index at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock", timeout=60):
            yield

    def _read_index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.folder / "index.json").read_bytes())
        except FileNotFoundError:
            return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        except ValueError as error:
            raise ServingError(
                f"{self.folder}/index.json is not JSON", hint="restore it or rebuild the images"
            ) from error
        if not isinstance(index, dict) or not isinstance(index.get("manifests"), list):
            raise ServingError(f"{self.folder}/index.json is not an OCI index", hint="restore it or rebuild the images")
        return index

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        write_atomically(self.folder / "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        manifests = sorted(
            manifests, key=lambda entry: (entry.get("annotations", {}).get(REFERENCE_NAME, ""), entry["digest"])
        )
        write_atomically(
            self.folder / "index.json",
            canonical_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}),
        )


def verify_blob(layout: ImageLayout, digest: str) -> None:
    """Re-hash a blob of any size.

    Raises:
        ServingError: It is missing or corrupt.
    """
    path = layout.blob_path(digest)
    if not path.is_file():
        raise ServingError(f"{layout.folder} has no blob {digest}", hint="build or pull the image again")
    if digest_file(path) != digest:
        raise ServingError(f"blob {digest} in {layout.folder} is corrupt", hint="delete it and build or pull again")
