"""What is really in an image: one walk over its layers gives files, packages, distributions and models.

Nothing is believed that the image says about itself in labels; what scanners read is read from the files.
Leaves to others: judging it (hardening.py, licences.py, vulnerabilities.py) and writing it down (sbom.py).
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from mlops.errors import ServingError
from mlops.serving.debian_packages import parse_control
from mlops.serving.layers import CUDA, MODELS, SITE_PACKAGES, TORCH
from mlops.serving.oci_layout import ImageLayout, verify_blob
from mlops.serving.oci_unpack import layer_members, open_layer

_SECRETS = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bgh[pos]_[A-Za-z0-9]{36}\b"
    rb"|\bxox[abp]-[0-9A-Za-z-]{20,}|\bsk-[A-Za-z0-9]{40,}\b"
)
_MARKS = (b"PRIVATE KEY-----", b"AKIA", b"ghp_", b"gho_", b"ghs_", b"xox", b"sk-")
"""Cheap to look for; only then the pattern."""
_SCANNED_BYTES = 1 << 20
_DOCUMENTS = "usr/share/doc/"
_KEPT_NAMES = re.compile(
    rf"var/lib/dpkg/status\.d/[^/]+|(?:{SITE_PACKAGES}|{CUDA}|{TORCH})/[^/]+\.dist-info/METADATA|usr/share/doc/[^/]+/copyright"
    rf"|{MODELS}/[^/]+/[^/]+/[^/]+\.json"
)


@dataclass(frozen=True)
class ImageFile:
    """One entry of the final file system."""

    name: str
    """Without leading slash."""
    kind: str
    """`file`, `folder`, `link`, or what else the tar says."""
    mode: int
    owner: int
    size: int
    layer: str
    """Name of the layer, or its number."""
    has_capabilities: bool = False
    has_secret: bool = False


@dataclass(frozen=True)
class Package:
    """A Debian package or a Python distribution."""

    kind: str
    """`deb` or `pypi`."""
    name: str
    version: str
    source: str
    """Debian source package; else the name."""
    source_version: str
    licence: str
    """As it states it; empty when it does not."""


@dataclass(frozen=True)
class ServedModel:
    """One `<product>/<version>` in the image."""

    product: str
    version: str
    contract: dict[str, Any]
    evidence: dict[str, str]


@dataclass(frozen=True)
class Inventory:
    """Everything that the checks look at."""

    digest: str
    config: dict[str, Any]
    """The image's config, its `config` part in `config["config"]`."""
    files: dict[str, ImageFile]
    packages: tuple[Package, ...]
    models: tuple[ServedModel, ...]
    faults: tuple[str, ...] = field(default=())
    """Where layers and config contradict each other."""


def take_inventory(layout_folder: Path, digest: str) -> Inventory:
    """Read an image as it lies in the layout.

    Raises:
        ServingError: A blob is missing or corrupt.
    """
    layout = ImageLayout(layout_folder)
    manifest = layout.read_manifest(digest)
    config = json.loads(layout.read_blob(manifest["config"]["digest"]))
    walk = _Walk()
    faults: list[str] = []
    diff_ids = config.get("rootfs", {}).get("diff_ids", [])
    if len(diff_ids) != len(manifest["layers"]):
        raise ServingError(f"{digest}: the config names {len(diff_ids)} layers, the manifest {len(manifest['layers'])}")
    for number, (layer, diff_id) in enumerate(zip(manifest["layers"], diff_ids, strict=True)):
        verify_blob(layout, layer["digest"])
        path = layout.blob_path(layer["digest"])
        if path.stat().st_size != layer["size"]:
            faults.append(f"layer {layer['digest']} has {path.stat().st_size} bytes, the manifest says {layer['size']}")
        name = (layer.get("annotations") or {}).get("io.mlops.layer", str(number))
        with open_layer(path, media_type=layer["mediaType"]) as stream:
            reader = _DigestingReader(stream)
            for tar, member in layer_members(cast(IO[bytes], reader)):
                walk.add(tar, member, layer=name)
            if reader.finish() != diff_id:
                faults.append(f"layer {layer['digest']} does not unpack to what the config says ({diff_id})")
    return Inventory(
        digest=digest,
        config=config,
        files=walk.files,
        packages=tuple(sorted(_packages(walk.texts), key=lambda item: (item.kind, item.name))),
        models=tuple(_models(walk.texts)),
        faults=tuple(faults),
    )


class _DigestingReader:
    """Passes a tar on, and keeps its digest."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._hash.update(piece)
        return piece

    def finish(self) -> str:
        """Read what is left; the digest of all."""
        while self.read(1 << 20):
            pass
        return f"sha256:{self._hash.hexdigest()}"


class _Walk:
    """Files and the texts of interest, layer over layer."""

    def __init__(self) -> None:
        self.files: dict[str, ImageFile] = {}
        self.texts: dict[str, bytes] = {}

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, *, layer: str) -> None:
        name = member.name.removeprefix("./").strip("/")
        base = name.rpartition("/")[2]
        if base.startswith(".wh."):
            gone = f"{name.rpartition('/')[0]}/{base.removeprefix('.wh.')}".strip("/")
            self._forget(name.rpartition("/")[0] if base == ".wh..wh..opq" else gone)
            return
        content = b""
        if member.isreg() and (_KEPT_NAMES.fullmatch(name) or member.size <= _SCANNED_BYTES):
            stream = tar.extractfile(member)
            content = b"" if stream is None else stream.read()
        if _KEPT_NAMES.fullmatch(name):
            self.texts[name] = content
        if member.issym() and name.startswith(_DOCUMENTS):
            self.texts[name] = member.linkname.encode()
        kinds = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "file"}
        self.files[name] = ImageFile(
            name=name,
            kind=kinds.get(member.type, f"type {member.type.decode('latin-1')}"),
            mode=member.mode,
            owner=member.uid,
            size=member.size,
            layer=layer,
            has_capabilities="SCHILY.xattr.security.capability" in member.pax_headers,
            has_secret=any(mark in content for mark in _MARKS) and _SECRETS.search(content) is not None,
        )

    def _forget(self, name: str) -> None:
        for held in (self.files, self.texts):
            for path in [path for path in held if path == name or path.startswith(f"{name}/")]:
                del held[path]


def _packages(texts: dict[str, bytes]) -> Iterable[Package]:
    for name, content in texts.items():
        if name.startswith("var/lib/dpkg/status.d/") and not name.endswith(".md5sums"):
            yield _debian_package(content, texts)
        elif name.endswith(".dist-info/METADATA"):
            yield _distribution(content)


def _debian_package(content: bytes, texts: dict[str, bytes]) -> Package:
    fields = parse_control(content)
    source, _, version = fields.get("Source", fields["Package"]).partition(" ")
    folder = _DOCUMENTS + fields["Package"]
    shared = texts.get(folder, b"").decode()  # a link to another package's folder
    terms = texts.get(f"{_DOCUMENTS}{shared or fields['Package']}/copyright", b"").decode("utf-8", errors="replace")
    named = re.findall(r"^License: *(\S.*)$", terms, re.MULTILINE) if terms.startswith("Format:") else []
    return Package(
        kind="deb",
        name=fields["Package"],
        version=fields["Version"],
        source=source,
        source_version=version.strip("()") or fields["Version"],
        licence=", ".join(sorted(set(named))) or ("see its copyright file" if terms else ""),
    )


def _distribution(content: bytes) -> Package:
    fields = email.parser.HeaderParser().parsestr(content.decode("utf-8", errors="replace").partition("\n\n")[0])
    classifiers = [text.rpartition(" :: ")[2] for text in fields.get_all("Classifier") or () if "License ::" in text]
    classifiers = [text for text in classifiers if text != "OSI Approved"]
    stated = fields.get("License-Expression") or "; ".join(classifiers) or (fields.get("License") or "")[:200]
    name = re.sub(r"[-_.]+", "-", str(fields["Name"])).lower()
    version = str(fields["Version"])
    return Package(
        kind="pypi", name=name, version=version, source=name, source_version=version, licence=str(stated).strip()
    )


def _models(texts: dict[str, bytes]) -> Iterable[ServedModel]:
    for name in sorted(texts):
        if name.startswith(f"{MODELS}/") and name.endswith("/contract.json"):
            product, version, _ = name.removeprefix(f"{MODELS}/").split("/")
            evidence = texts.get(f"{MODELS}/{product}/{version}/evidence.json", b"{}")
            yield ServedModel(
                product=product, version=version, contract=json.loads(texts[name]), evidence=json.loads(evidence)
            )
