"""Keyed hashes of people: shards, index and tombstones hold HMAC-SHA256(key, subject id), never the id.

Leaves to others: which rows are whose (typing_rows.py) and what happens on withdrawal (mlops/erasure).
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable

from mlops.datasets.schema import SubjectKey
from mlops.errors import DatasetError
from mlops.places import Places

HASH_BYTES = 32
_SECRET_NAME = re.compile(r"[A-Z][A-Z0-9_]{2,63}")


def load_subject_key(places: Places, key: SubjectKey) -> bytes:
    """The key itself: public text, environment variable or file of the keys folder.

    Raises:
        DatasetError: The secret is not there; nothing can be imported or looked up without it.
    """
    if key.public is not None:
        return key.public.encode()
    name = key.secret or ""
    if not _SECRET_NAME.fullmatch(name):
        raise DatasetError(f"subject key: {name!r} is not a secret's name", hint="use capitals, digits and _")
    value = os.environ.get(name)
    path = places.keys_folder / name
    if value is None and path.is_file():
        value = path.read_text(encoding="utf-8").strip()
    if not value:
        raise DatasetError(
            f"the subject key {name} is missing: neither an environment variable nor {path}",
            hint="ask the dataset's owner for the key; without it people cannot be found again, so nothing is imported",
        )
    return value.encode()


def hash_subject(subject_id: str, *, key: bytes) -> bytes:
    """HMAC-SHA256 of one id, 32 bytes."""
    return hmac.digest(key, subject_id.encode(), "sha256")


def hash_subjects(subject_ids: Iterable[str], *, key: bytes) -> list[bytes]:
    """HMAC-SHA256 of each id."""
    return [hmac.digest(key, subject_id.encode(), "sha256") for subject_id in subject_ids]


def group_of(subject: bytes, *, groups: int) -> int:
    """Isolation group of a keyed hash: its first 8 bytes, big-endian, mod the number of groups."""
    return int.from_bytes(subject[:8], "big") % groups
