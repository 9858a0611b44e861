"""A dataset version: schema, manifest and where its objects lie; small, picklable, read without checkout or git.

A reader goes by digest: `datasets.dvc` → the `.dir` object → `manifest.json` and `dataset.yaml` → shards, each verified
on arrival. Only documented DVC formats are read here. Leaves to others: writing and moving objects (dvc_store), git.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops.datasets.manifest import Manifest
from mlops.datasets.schema import Schema
from mlops.places import Places

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class DatasetVersion:
    """One version of one dataset."""

    name: str
    digest: str
    """`sha256:…` of the manifest."""
    dvc_digest: str
    """`<md5>.dir`, as `datasets.dvc` says it."""
    schema: Schema
    manifest: Manifest
    object_urls: tuple[str, ...]
    """Folders or remotes to look in, nearest first; an object lies at `<url>/<2 hex>/<30 hex>`."""


def load_dataset_version(places: Places, name: str, *, revision: str | None = None) -> DatasetVersion:
    """The version that `datasets.dvc` pins, or that it pinned at a git revision or digest.

    Args:
        places: The project.
        name: Of the dataset.
        revision: Git revision, `sha256:…` of a manifest or `<md5>.dir`; None is the working tree's `datasets.dvc`.

    Raises:
        DatasetError: Unknown dataset or revision, missing or changed objects.
    """
    raise NotImplementedError


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
    raise NotImplementedError
