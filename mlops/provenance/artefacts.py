"""Where the bytes behind recorded digests lie, and their digests recomputed: loaders for `verify_chain`.

Leaves to others: artefacts whose form only an upper room knows (dataset shards), which it adds to the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError
from mlops.places import Places
from mlops.provenance.digest import digest_bytes, digest_file, digest_folder, digest_json, hex_of
from mlops.provenance.git_repository import open_repository
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.verify import FoundBytes, Loader

_SIDECARS = {"export": "candidate", "gate": "gate", "image": "image"}
"""Step kind to the output that has a place of its own."""


def project_loaders(places: Places) -> dict[str, Loader]:
    """Loaders of everything that lies in a project under its digest, or in its git history."""
    return {
        "candidate": partial(_load_candidate, places),
        "gate": partial(_load_evidence, places),
        "probe": partial(_load_evidence, places),
        "image": partial(_load_image, places),
        "version": _load_version,
        "trainer": partial(load_source, places, "training/{product}.py"),
        "policy": partial(load_source, places, "evaluation/{product}.yaml"),
        "lock": partial(load_source, places, "requirements.lock"),
        "desired": partial(load_source, places, "deploy/desired/{environment}.yaml"),
    }


def find_sidecar(places: Places, record: StepRecord) -> Path | None:
    """File beside a step's artefact that repeats its envelope: `<thing>.attestation.json`.

    What has no folder of its own gets one in `.mlops/attestations/`, named by its first output.
    """
    digest = record.outputs.get(_SIDECARS.get(record.kind, ""))
    if digest is not None and record.kind == "export":
        return places.candidates / f"{hex_of(digest)}.attestation.json"
    if digest is not None and record.kind == "gate":
        return places.evidence / f"{hex_of(digest)}.attestation.json"
    first = next((record.outputs[name] for name in sorted(record.outputs)), None)
    if first is None:
        return None
    return places.state / "attestations" / f"{record.kind}-{hex_of(digest or first)}.attestation.json"


def _load_candidate(places: Places, _step: StepRecord, digest: str) -> FoundBytes:
    folder = places.candidates / hex_of(digest)
    return FoundBytes(digest_folder(folder) if folder.is_dir() else None, str(folder))


def _load_evidence(places: Places, step: StepRecord, digest: str) -> FoundBytes:
    """`evidence/<hex>/`: the files whose digests the step states, else a JSON document that has the digest itself."""
    base = places.evidence / hex_of(digest)
    stated = step.facts.get("files")
    if not base.is_dir():
        return FoundBytes(None, str(base))
    if isinstance(stated, dict) and stated:
        for name, expected in stated.items():
            path = base / name
            actual = digest_file(path) if path.is_file() else None
            if actual != expected:
                return FoundBytes(actual, str(path), problem=f"is not the file with digest {expected}")
        return FoundBytes(digest, str(base))
    files = sorted(base.glob("*.json"))
    if digest in {digest_file(path) for path in files} | {_digest_content(path) for path in files}:
        return FoundBytes(digest, str(base))
    return FoundBytes(digest_file(files[0]) if files else None, str(files[0] if files else base))


def _digest_content(path: Path) -> str:
    try:
        return digest_json(json.loads(path.read_bytes()))
    except ValueError:
        return ""


def _load_image(places: Places, _step: StepRecord, digest: str) -> FoundBytes:
    """The manifest and every blob it names, as an OCI image layout keeps them."""
    blobs = places.images / "blobs" / "sha256"
    manifest = blobs / hex_of(digest)
    if not manifest.is_file():
        return FoundBytes(None, str(manifest))
    content = manifest.read_bytes()
    actual = digest_bytes(content)
    if actual != digest:
        return FoundBytes(actual, str(manifest))
    parts = json.loads(content)
    for part in (parts["config"], *parts["layers"]):
        path = blobs / hex_of(part["digest"])
        if not path.is_file():
            return FoundBytes(None, str(path), problem=f"blob {part['digest']} of image {digest} is not there")
        if digest_file(path) != part["digest"]:
            return FoundBytes(
                digest_file(path), str(path), problem=f"blob {part['digest']} of image {digest} was changed"
            )
    return FoundBytes(actual, str(manifest))


def _load_version(step: StepRecord, _digest: str) -> FoundBytes:
    """A version is a name for its parts; it is recomputed from the step that registered it."""
    parts: dict[str, Any] = {"product": step.product, "number": step.facts.get("number")}
    parts |= {name: step.inputs.get(name) for name in ("candidate", "gate")}
    return FoundBytes(digest_json(parts), "the registration's inputs")


def load_source(
    places: Places,
    pattern: str,
    step: StepRecord,
    digest: str,
    *,
    digest_content: Callable[[bytes], str] = digest_bytes,
) -> FoundBytes:
    """A file that people write: in the work tree, else in the git history of its path.

    Args:
        places: The project.
        pattern: Path with `{product}` or `{environment}` in it.
        step: Gives them.
        digest: What is looked for.
        digest_content: How the step digests the file; what it cannot parse gives "".
    """
    path = pattern.format(product=step.product, environment=step.facts.get("environment", ""))
    place = places.root / path
    if place.is_file() and digest_content(place.read_bytes()) == digest:
        return FoundBytes(digest, str(place))
    try:
        repository = open_repository(places.root)
        for commit in repository.commits_of(path):
            if digest_content(repository.read_file(path, revision=commit)) == digest:
                return FoundBytes(digest, f"{path} at commit {commit[:12]}")
    except MlopsError as error:
        return FoundBytes(None, path, is_needed=False, problem=error.message)
    return FoundBytes(None, path, is_needed=False, problem=f"{path} was not committed as it was used")
