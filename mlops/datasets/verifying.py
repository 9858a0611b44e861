"""Whether a version lies whole in every place: cache, remotes on this machine, workspace folder.

Leaves to others: mending (importing.py) and remotes elsewhere, which are verified when they are read or written.
"""

from __future__ import annotations

from pathlib import Path

from mlops.datasets.locations import load_locations
from mlops.datasets.manifest import Shard
from mlops.datasets.objects import is_local, object_path, read_object, verify_file
from mlops.datasets.parts import Part, join_digests, load_part_pins, split_digest
from mlops.datasets.pins import parse_directory
from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.errors import DatasetError
from mlops.places import Places

HASHED_BYTES = 512 << 20
"""Datasets up to this size are hashed on every rerun; of larger ones sizes (`dataset verify` hashes all)."""


def pinned_digest(places: Places, name: str) -> str:
    """The DVC digest that the working tree pins; empty when it pins none."""
    return join_digests(tuple((part, pin.dvc_digest) for part, pin in load_part_pins(places, name)))


def find_present_version(places: Places, name: str) -> DatasetVersion | None:
    """The pinned version, when it lies whole in every place; None when something must be imported or mended."""
    dvc_digest = pinned_digest(places, name)
    if not dvc_digest or find_damage(places, name, dvc_digest=dvc_digest):
        return None
    return load_version_of(load_locations(places).object_urls, name, dvc_digest=dvc_digest)


def find_damage(places: Places, name: str, *, dvc_digest: str, hash_bytes: int = HASHED_BYTES) -> tuple[str, ...]:
    """Everything of a version that is not where it should be.

    Args:
        places: The project.
        name: Of the dataset.
        dvc_digest: Of the version.
        hash_bytes: Datasets up to this size are hashed; of larger ones only sizes are compared.

    Returns:
        One line for each missing or changed file; empty when all is well.
    """
    urls = load_locations(places).object_urls
    try:
        version = load_version_of(urls, name, dvc_digest=dvc_digest)
        parts = split_digest(name, dvc_digest)
        members = [parse_directory(read_object(urls, digest, what=digest), source=digest) for _, digest in parts]
    except DatasetError as error:
        return (error.message,)
    shards = {shard.relpath: shard for shard in version.manifest.shards}
    is_hashed = version.manifest.bytes <= hash_bytes
    damage: list[str] = []
    for (part, digest), files in zip(parts, members, strict=True):
        folder = places.root / part.folder
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        damage.extend(f"{path}: stands in {folder} and not in the version" for path in sorted(found - files.keys()))
        for path, md5 in {**files, ".dir": digest}.items():
            shard = shards.get(f"{part.name}/{path}" if part.name else path)
            places_of_file = [Path(object_path(url, md5)) for url in urls if is_local(url)]
            places_of_file += [folder / path] if path in files else []
            damage.extend(_check(path, places_of_file, md5=md5 if is_hashed else None, shard=shard))
    return tuple(damage)


def _check(name: str, files: list[Path], *, md5: str | None, shard: Shard | None) -> list[str]:
    problems = [verify_file(file, md5=md5, size=shard.bytes if shard is not None else None) for file in files]
    return [f"{name}: {problem}" for problem in problems if problem]


def require_part(version: DatasetVersion, relpath: str) -> tuple[Part, str]:
    """The part that holds a shard of a version, and the shard's path inside it."""
    for part, _ in split_digest(version.name, version.dvc_digest):
        if not part.name:
            return part, relpath
        if relpath.startswith(f"{part.name}/"):
            return part, relpath.removeprefix(f"{part.name}/")
    raise DatasetError(f"{relpath} is no shard of dataset {version.name}")
