"""The fence: a version that still holds withdrawn people is not trained on, and what was trained on it is not promoted.

Decided from tombstones and the subject index each time, so it can neither go stale nor be forgotten.
Leaves to others: withdrawing (tombstones.py) and making the version that forgets (forgetting.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from mlops.datasets.schema import refuse_purpose
from mlops.datasets.subject_index import load_subjects
from mlops.datasets.subjects import HASH_BYTES, group_of
from mlops.datasets.tombstones import load_purged, load_tombstones
from mlops.datasets.version import DatasetVersion
from mlops.errors import Reason, Refusal
from mlops.places import Places


def find_withdrawn(
    places: Places, version: DatasetVersion, *, subjects: Iterable[bytes] | None = None
) -> frozenset[bytes]:
    """Withdrawn people that a version holds, as far as its shards are not purged.

    Args:
        places: The project.
        version: Where to look.
        subjects: Who is asked about; by default everyone with a tombstone.

    Raises:
        DatasetError: A shard in question is missing or changed.
    """
    wanted = load_tombstones(places, version.name) if subjects is None else frozenset(subjects)
    by_group: dict[int, set[bytes]] = {}
    for subject in wanted:
        by_group.setdefault(group_of(subject, groups=version.schema.groups), set()).add(subject)
    purged = load_purged(places, version.name)
    found: set[bytes] = set()
    for shard in version.manifest.shards:
        if shard.group in by_group and shard.md5 not in purged:
            content = load_subjects(places, version, shard).tobytes()
            held = {content[start : start + HASH_BYTES] for start in range(0, len(content), HASH_BYTES)}
            found |= held & by_group[shard.group]
    return frozenset(found)


def find_training_fence(
    places: Places,
    version: DatasetVersion,
    *,
    purpose: str | None = None,
    subjects: Iterable[bytes] | None = None,
) -> Refusal | None:
    """Why nothing new may be trained on a version; None when it may be used and holds no withdrawn person.

    Args:
        places: The project.
        version: What would be trained on.
        purpose: What for; None where that was asked before.
        subjects: As in `find_withdrawn`: the batch that retrains names its own people, for whoever withdraws while it
            is at work belongs to the next one.
    """
    refused = None if purpose is None else refuse_purpose(version.schema, purpose)
    if refused is not None:
        return refused
    count = len(find_withdrawn(places, version, subjects=subjects))
    if count == 0:
        return None
    people = "1 person who withdrew" if count == 1 else f"{count} people who withdrew"
    text = f"dataset {version.name} {version.digest[7:19]} still holds {people}; `mlops erasure run {version.name}`"
    return Refusal((Reason("withdrawn-people", text),))
