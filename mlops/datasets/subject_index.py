"""The subject index: which shards hold a person, found by keyed hash.

A person's isolation group follows from the hash, so only that group's shards come into question; of each shard the
sorted hashes lie in a file named by the shard's sha256: the index is never stale, and rebuilt from shards when lost.
Leaves to others: the hash of an id (subjects.py) and removing rows (forgetting.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlops.datasets.manifest import Shard
from mlops.datasets.schema import SUBJECT_COLUMN
from mlops.datasets.shards import sort_rows, subject_bytes
from mlops.datasets.subjects import HASH_BYTES, group_of
from mlops.datasets.version import DatasetVersion, read_shard
from mlops.files import write_atomically
from mlops.places import Places


@dataclass(frozen=True)
class Holding:
    """A shard that holds a person."""

    dataset: str
    digest: str
    """Of the version."""
    dvc_digest: str
    shard: Shard
    rows: int
    """Rows of the person in the shard."""


def find_subject(places: Places, version: DatasetVersion, subject: bytes) -> tuple[Holding, ...]:
    """Shards of a version that hold a person.

    Args:
        places: The project; the index lies in its cache.
        version: Where to look.
        subject: Keyed hash, 32 bytes.

    Raises:
        DatasetError: A shard in question is missing or changed.
    """
    group = group_of(subject, groups=version.schema.groups)
    found = []
    for shard in version.manifest.shards:
        if shard.group != group:
            continue
        rows = count_rows(load_subjects(places, version, shard), subject)
        if rows:
            found.append(Holding(version.name, version.digest, version.dvc_digest, shard, rows))
    return tuple(found)


def load_subjects(places: Places, version: DatasetVersion, shard: Shard) -> np.ndarray:
    """Sorted keyed hashes of a shard's rows, `S32` [rows]; from the index, or from the shard.

    Raises:
        DatasetError: Not in the index, and the shard is missing or changed.
    """
    path = index_file(places, shard)
    if not (path.is_file() and path.stat().st_size == shard.rows * HASH_BYTES):
        save_subjects(places, shard, read_shard(version, shard, columns=[SUBJECT_COLUMN]))
    return np.memmap(path, dtype=f"V{HASH_BYTES}", mode="r")


def save_subjects(places: Places, shard: Shard, rows: pa.Table) -> None:
    """Keep the sorted keyed hashes of a shard's rows in the index."""
    write_atomically(index_file(places, shard), subject_bytes(sort_rows(rows)).tobytes())


def index_file(places: Places, shard: Shard) -> Path:
    """Where the index of one shard lies."""
    return places.cache / "datasets" / "subjects" / shard.sha256[:2] / shard.sha256


def count_rows(subjects: np.ndarray, subject: bytes) -> int:
    """How often a keyed hash stands in sorted hashes."""
    low, high = 0, len(subjects)
    while low < high:  # the first hash that is not below; numpy does not order raw bytes
        middle = (low + high) // 2
        low, high = (middle + 1, high) if subjects[middle].tobytes() < subject else (low, middle)
    end = low
    while end < len(subjects) and subjects[end].tobytes() == subject:
        end += 1
    return end - low
