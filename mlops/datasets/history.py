"""Every version of a dataset that this project knows: pinned now, pinned in git's history, or lying in a store here.

Leaves to others: what stands in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlops.datasets.locations import load_locations
from mlops.datasets.objects import is_local
from mlops.datasets.parts import join_digests, load_part_pins, load_part_pins_at, split_digest
from mlops.datasets.version import DatasetVersion, load_version_of
from mlops.errors import MlopsError
from mlops.places import Places
from mlops.provenance.git_repository import open_repository


def list_versions(places: Places, name: str) -> tuple[DatasetVersion, ...]:
    """Versions whose manifest can be read, the pinned one first, each once."""
    urls = load_locations(places).object_urls
    found: dict[str, DatasetVersion] = {}
    named = dict.fromkeys((*_pinned(places, name), *_committed(places, name)))
    covered = {digest for dvc_digest in named for _, digest in split_digest(name, dvc_digest)}
    for dvc_digest in dict.fromkeys((*named, *(digest for digest in _stored(urls) if digest not in covered))):
        try:
            version = load_version_of(urls, name, dvc_digest=dvc_digest)
        except MlopsError:
            continue  # its objects are gone, or it belongs to another tool
        if version.manifest.dataset == name:
            found.setdefault(version.digest, version)
    return tuple(found.values())


def _pinned(places: Places, name: str) -> Iterator[str]:
    pins = load_part_pins(places, name)
    if pins:
        yield join_digests(tuple((part, pin.dvc_digest) for part, pin in pins))


def _committed(places: Places, name: str) -> Iterator[str]:
    try:
        repository = open_repository(places.root)
        commits = (*repository.commits_of("datasets.dvc"), *repository.commits_of("datasets"))
    except MlopsError:
        return  # the project is not in git
    for commit in dict.fromkeys(commits):
        try:
            pins = load_part_pins_at(places, name, revision=commit)
        except MlopsError:
            continue  # not pinned in that commit
        yield join_digests(tuple((part, pin.dvc_digest) for part, pin in pins))


def _stored(urls: tuple[str, ...]) -> Iterator[str]:
    for url in urls:
        if is_local(url):
            yield from (path.parent.name + path.name for path in sorted(Path(url).glob("??/*.dir")))
