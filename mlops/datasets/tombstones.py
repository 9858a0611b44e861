"""Tombstones: keyed hashes of withdrawn people, and objects that were purged, kept in git beside the recipe.

`datasets/<name>.tombstones` blocks re-entry at import; `datasets/<name>.purged` names shard objects that must not come
back, for instance by a push from a stale clone. Both hold digests only. A new withdrawal stands first in
`.mlops/tombstones/<name>`, one appended line, and counts at once; it moves to git with the version without the person.
Leaves to others: requests and certificates (mlops/erasure), rewriting shards (forgetting.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mlops.errors import DatasetError
from mlops.files import write_atomically
from mlops.places import Places

_HEX = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")


def tombstone_file(places: Places, name: str) -> Path:
    """Where a dataset's tombstones lie."""
    return places.dataset_folder(name).with_suffix(".tombstones")


def purged_file(places: Places, name: str) -> Path:
    """Where the names of a dataset's purged objects lie."""
    return places.dataset_folder(name).with_suffix(".purged")


def load_tombstones(places: Places, name: str) -> frozenset[bytes]:
    """Keyed hashes (32 bytes) of everyone who was withdrawn from a dataset.

    Raises:
        DatasetError: The file is damaged; nothing is imported then.
    """
    path = pending_file(places, name)
    pending = path.read_text(encoding="utf-8").split() if path.is_file() else []
    whole = [line for line in pending if _HEX.fullmatch(line)]  # a torn line was never acknowledged
    return frozenset(bytes.fromhex(line) for line in (*_load(tombstone_file(places, name), _HEX), *whole))


def pending_file(places: Places, name: str) -> Path:
    """Where withdrawals stand that no commit holds yet."""
    return places.state / "tombstones" / name


def withdraw_subjects(places: Places, name: str, subjects: Iterable[bytes]) -> None:
    """Fence people at once, by one durable append; safe from several processes, and harmless when repeated."""
    content = "".join(f"\n{subject.hex()}" for subject in subjects).encode() + b"\n"
    path = pending_file(places, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, content)
        os.fsync(handle)
    finally:
        os.close(handle)


def add_tombstones(places: Places, name: str, subjects: Iterable[bytes]) -> int:
    """Block people from entering a dataset again.

    Returns:
        How many were not blocked before.
    """
    path = tombstone_file(places, name)
    return _add(path, _HEX, (subject.hex() for subject in subjects))


def load_committed_tombstones(places: Places, name: str) -> frozenset[bytes]:
    """Those of people who left the pinned version: a tombstone comes to git together with the version without them.

    Raises:
        DatasetError: The file is damaged.
    """
    return frozenset(bytes.fromhex(line) for line in _load(tombstone_file(places, name), _HEX))


def restore_withdrawals(places: Places, texts: Mapping[str, str], pending: Path | None) -> int:
    """Let withdrawals that a backup knows hold besides those of the project.

    What git does not know fences at once, like a new withdrawal: the pinned version may hold that person.

    Args:
        places: The project.
        texts: Files beside the recipes by name (`income.tombstones`, `income.purged`), as they were.
        pending: Folder with the withdrawals that no commit held.

    Returns:
        How many people are withdrawn now, over all datasets.
    """
    known = {path.name: path.read_text(encoding="utf-8") for path in pending.glob("*")} if pending else {}
    for file, text in texts.items():
        name, _, kind = file.rpartition(".")
        if kind == "tombstones":
            known[name] = f"{known.get(name, '')}\n{text}"
        else:
            add_purged(places, name, filter(_MD5.fullmatch, text.split()))
    for name, text in known.items():
        missing = {bytes.fromhex(line) for line in text.split() if _HEX.fullmatch(line)} - load_tombstones(places, name)
        if missing:
            withdraw_subjects(places, name, sorted(missing))
    folders = (places.root / "datasets").glob("*.tombstones"), (places.state / "tombstones").glob("*")
    names = {path.name.removesuffix(".tombstones") for folder in folders for path in folder}
    return sum(len(load_tombstones(places, name)) for name in names)


def load_purged(places: Places, name: str) -> frozenset[str]:
    """md5 of shard objects that were removed from every store for good."""
    return frozenset(_load(purged_file(places, name), _MD5))


def add_purged(places: Places, name: str, objects: Iterable[str]) -> int:
    """Remember purged objects; returns how many are new."""
    return _add(purged_file(places, name), _MD5, objects)


def _load(path: Path, pattern: re.Pattern[str]) -> list[str]:
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
    wrong = [line for line in lines if not pattern.fullmatch(line)]
    if wrong:
        raise DatasetError(f"{path} has {len(wrong)} lines that are no digest", hint="restore it from git")
    return lines


def _add(path: Path, pattern: re.Pattern[str], entries: Iterable[str]) -> int:
    before = set(_load(path, pattern))
    after = before | set(entries)
    if after != before:
        write_atomically(path, "".join(f"{entry}\n" for entry in sorted(after)))
    return len(after) - len(before)
