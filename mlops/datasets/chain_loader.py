"""A dataset version as a link of a chain: its manifest and every copy of every shard, hashed where they lie.

Leaves to others: judging the finding (mlops/provenance/verify.py) and which versions were erased (mlops/erasure).
"""

from __future__ import annotations

from pathlib import Path

from mlops.datasets.locations import load_locations
from mlops.datasets.objects import is_local, object_path, read_object, verify_file
from mlops.datasets.pins import parse_directory
from mlops.datasets.version import load_version_of
from mlops.errors import DatasetError
from mlops.places import Places
from mlops.provenance.digest import digest_file
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.verify import FoundBytes


def load_manifest_bytes(places: Places, step: StepRecord, digest: str) -> FoundBytes:
    """What lies behind the `manifest` that a `dataset-import` step made.

    Every copy in the cache and in remotes on this machine must be whole, and each shard must lie somewhere. Shards in
    distant remotes are not fetched.
    """
    name, dvc_digest = str(step.facts.get("dataset")), str(step.facts.get("dvc_digest"))
    where = f"dataset {name} {dvc_digest}"
    try:
        urls = load_locations(places).object_urls
        version = load_version_of(urls, name, dvc_digest=dvc_digest)
        members = parse_directory(read_object(urls, dvc_digest, what=where), source=where)
    except DatasetError as error:
        return FoundBytes(None, where, problem=error.message)
    sha256 = {shard.relpath: shard.sha256 for shard in version.manifest.shards}
    is_elsewhere = not all(is_local(url) for url in urls)
    for path, md5 in {**members, ".dir": dvc_digest}.items():
        copies = [place for place in (Path(object_path(url, md5)) for url in urls if is_local(url)) if place.is_file()]
        for copy in copies:
            is_whole = digest_file(copy) == f"sha256:{sha256[path]}" if path in sha256 else not _damage(copy, md5)
            if not is_whole:
                return FoundBytes(version.digest, str(copy), problem=f"the copy of {path} was changed")
        if not copies and not is_elsewhere:
            return FoundBytes(None, where, problem=f"{path} of {digest} is in no store")
    return FoundBytes(version.digest, f"{where}, {len(sha256)} shards")


def _damage(copy: Path, md5: str) -> str:
    return verify_file(copy, md5=md5, size=None)
