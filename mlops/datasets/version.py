"""A dataset version: schema, manifest and where its objects lie; small, picklable, read without checkout or git.

A reader goes by digest: `datasets.dvc` → the `.dir` object → `manifest.json` and `dataset.yaml` → shards, each verified
on arrival. Only documented DVC formats are read here. Leaves to others: writing and moving objects (dvc_store), git.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlops.datasets.locations import load_locations, load_peers
from mlops.datasets.manifest import (
    MANIFEST_FILE,
    SCHEMA_FILE,
    Manifest,
    Shard,
    is_digest,
    merge_manifests,
    parse_manifest,
)
from mlops.datasets.objects import is_local, read_object
from mlops.datasets.parts import (
    Part,
    join_digests,
    load_part_pins,
    load_part_pins_at,
    require_part_pins,
    split_digest,
)
from mlops.datasets.pins import parse_directory
from mlops.datasets.placement import rank_nodes
from mlops.datasets.schema import SUBJECT_COLUMN, Schema
from mlops.errors import DatasetError, MlopsError
from mlops.places import Places
from mlops.provenance.digest import hex_of
from mlops.specs import parse_spec

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class DatasetVersion:
    """One version of one dataset."""

    name: str
    digest: str
    """`sha256:…` of the manifest."""
    dvc_digest: str
    """`<md5>.dir`, as `datasets.dvc` says it; with partitions `p00000=<md5>.dir,…`."""
    schema: Schema
    manifest: Manifest
    object_urls: tuple[str, ...]
    """Folders or remotes to look in, nearest first; an object lies at `<url>/<2 hex>/<30 hex>`."""
    peer_urls: tuple[str, ...] = ()
    """Stores of other nodes, asked for a shard after the first of `object_urls` and before the others."""


def load_dataset_version(places: Places, name: str, *, revision: str | None = None) -> DatasetVersion:
    """The version that the working tree pins, or another one.

    Args:
        places: The project.
        name: Of the dataset.
        revision: What a version is called: `sha256:…` of its manifest, its DVC digest, or a git revision that pins it;
            None is the working tree.

    Raises:
        DatasetError: Unknown dataset or revision, missing or changed objects.
    """
    return replace(_load_version(places, name, revision=revision), peer_urls=load_peers())


def _load_version(places: Places, name: str, *, revision: str | None) -> DatasetVersion:
    pins = require_part_pins(places, name) if revision is None else ()
    urls = load_locations(places).object_urls
    if revision is not None and revision.endswith(".dir"):
        return load_version_of(urls, name, dvc_digest=revision)
    if revision is not None and is_digest(revision):
        return _find_version(places, urls, name, digest=revision)
    if revision is not None:
        pins = load_part_pins_at(places, name, revision=revision)
    return load_version_of(urls, name, dvc_digest=join_digests(tuple((part, pin.dvc_digest) for part, pin in pins)))


def load_version_of(urls: tuple[str, ...], name: str, *, dvc_digest: str) -> DatasetVersion:
    """The version behind its `.dir` objects, from whichever store has them.

    Raises:
        DatasetError: Missing or changed objects, or a `.dir` that does not agree with its own manifest.
    """
    parts = [(part, _load_part(urls, part, dvc_digest=digest)) for part, digest in split_digest(name, dvc_digest)]
    version = parts[0][1]
    if len(parts) == 1:
        return version
    manifest = merge_manifests(tuple((part.name, other.manifest) for part, other in parts))
    return replace(version, manifest=manifest, digest=manifest.digest, dvc_digest=dvc_digest)


def _load_part(urls: tuple[str, ...], part: Part, *, dvc_digest: str) -> DatasetVersion:
    what = f"the directory object of {part.folder}"
    members = parse_directory(read_object(urls, dvc_digest, what=what), source=dvc_digest)
    contents = {}
    for file in (MANIFEST_FILE, SCHEMA_FILE):
        if file not in members:
            raise DatasetError(f"{dvc_digest} of {part.folder} has no {file}", hint="was it added by another tool?")
        contents[file] = read_object(urls, members[file], what=f"{file} of {part.folder}")
    manifest = parse_manifest(contents[MANIFEST_FILE], source=f"{MANIFEST_FILE} of {part.folder}")
    schema = parse_spec(contents[SCHEMA_FILE].decode(), Schema, source=f"{SCHEMA_FILE} of {part.folder}")
    _verify_agreement(manifest, schema, members, dvc_digest=dvc_digest)
    return DatasetVersion(
        name=part.dataset,
        digest=manifest.digest,
        dvc_digest=dvc_digest,
        schema=schema,
        manifest=manifest,
        object_urls=urls,
    )


def _find_version(places: Places, urls: tuple[str, ...], name: str, *, digest: str) -> DatasetVersion:
    """The version with a manifest digest: the pinned one, or one whose `.dir` lies in a store on this machine."""
    pins = load_part_pins(places, name)
    if pins:
        version = load_version_of(
            urls, name, dvc_digest=join_digests(tuple((part, pin.dvc_digest) for part, pin in pins))
        )
        if version.digest == digest:
            return version
    for path in (path for url in urls if is_local(url) for path in sorted(Path(url).glob("??/*.dir"))):
        try:
            version = load_version_of(urls, name, dvc_digest=path.parent.name + path.name)
        except MlopsError:
            continue  # another dataset, another tool, or damaged: not the one that is looked for
        if version.digest == digest:
            return version
    raise DatasetError(
        f"no version {digest} of dataset {name} in any store on this machine",
        items=urls,
        hint="name it by a git revision whose datasets.dvc pins it",
    )


def read_shard(version: DatasetVersion, shard: Shard, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one shard, verified by md5 and sha256.

    Raises:
        DatasetError: The shard is missing or its bytes changed.
    """
    import pyarrow.parquet as pq  # 0.1 s, and listing versions does not need it

    from mlops.datasets.typing_rows import arrow_schema

    what = f"shard {shard.relpath} of dataset {version.name}"
    first, *others = version.object_urls
    urls = (first, *rank_nodes(version.peer_urls, shard.sha256), *others)
    content = read_object(urls, shard.md5, what=what, sha256=shard.sha256)
    schema = arrow_schema(version.schema.columns)
    names = list(columns) if columns is not None else schema.names
    table = pq.read_table(io.BytesIO(content), columns=names, use_threads=False)
    if table.num_rows != shard.rows:
        raise DatasetError(f"{what} has {table.num_rows} rows, the manifest says {shard.rows}")
    import pyarrow as pa

    return table.select(names).cast(pa.schema([schema.field(name) for name in names]))


def read_split(version: DatasetVersion, split: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a split in manifest order, every shard verified by sha256.

    Args:
        version: Which version.
        split: `train`, `validation`, `test`, …
        columns: Names; None gives all, with the `subject` hash as the last one.

    Returns:
        A table: numbers float32, categories int64 codes, tensors fixed-size lists of float32, `subject` 32 bytes.

    Raises:
        DatasetError: Unknown split or column, missing or changed shard.
    """
    import pyarrow as pa  # 0.1 s, and listing versions does not need it

    known = [column.name for column in version.schema.columns] + [SUBJECT_COLUMN]
    strangers = [name for name in columns or () if name not in known]
    if strangers:
        raise DatasetError(
            f"dataset {version.name} has no column {', '.join(map(repr, strangers))}", hint=f"known: {', '.join(known)}"
        )
    shards = version.manifest.shards_of(split)
    return pa.concat_tables([read_shard(version, shard, columns=columns) for shard in shards]).combine_chunks()


def _verify_agreement(manifest: Manifest, schema: Schema, members: dict[str, str], *, dvc_digest: str) -> None:
    """A `.dir` with a missing member is never taken for a smaller dataset."""
    listed = {shard.relpath: shard.md5 for shard in manifest.shards}
    found = {path: md5 for path, md5 in members.items() if path not in (MANIFEST_FILE, SCHEMA_FILE)}
    if listed != found:
        differing = sorted(path for path in listed.keys() | found.keys() if listed.get(path) != found.get(path))
        raise DatasetError(
            f"{dvc_digest} and its manifest disagree about {len(differing)} shards of dataset {manifest.dataset}",
            items=tuple(differing[:10]),
            hint="was it changed by `dvc add` in a partial workspace? restore datasets.dvc from git",
        )
    if manifest.schema_sha256 != hex_of(schema.digest):
        raise DatasetError(f"{SCHEMA_FILE} of dataset {manifest.dataset} is not the one its manifest names")
