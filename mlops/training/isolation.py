"""Isolation: which groups of people each member of an ensemble reads, slice by slice, and what each slice is named by.

A member reads only its own isolation groups, and stage r of its training only slices 0 to r (Bourtoule et al. 2021,
"Machine Unlearning", SISA). A slice's key is the digest of everything that its checkpoint depends on, so that after a
person was forgotten exactly the clean slices keep their keys, and a retrain finds where to go on by itself.
Leaves to others: training the members (mlops/training/ensemble), removing a person's shards (mlops/datasets).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.datasets.manifest import Shard, digest_shards
from mlops.datasets.version import DatasetVersion
from mlops.errors import TrainingError
from mlops.provenance.digest import digest_json, hex_of
from mlops.training.seeds import derive_seed
from mlops.training.spec import Isolation

SLICES_FOLDER, ENSEMBLES_FOLDER = "slices", "ensembles"
"""Below the checkpoints: one folder per slice key, shared by all sweeps, and one per set of members."""
SHARDS_FILE = "shards.json"
"""In each of these folders: which shards its weights have seen, so that a purge finds it."""


@dataclass(frozen=True)
class Slice:
    """What a member has read at the end of one stage."""

    key: str
    """Hex digits of the digest of everything that the weights at this point depend on."""
    groups: tuple[int, ...]
    """Isolation groups that this stage adds."""
    shards: tuple[Shard, ...]
    """All that was read up to here."""

    def folder(self, checkpoints: Path) -> Path:
        """Where its checkpoint lies; after the last slice, the member's weights."""
        return checkpoints / SLICES_FOLDER / self.key


@dataclass(frozen=True)
class Member:
    """One member of an ensemble."""

    number: int
    seed: int
    slices: tuple[Slice, ...]


def split_groups(first: int, end: int, isolation: Isolation) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """[S][R] isolation groups of each member's slices: dealt out in turn, each group to one slice of one member.

    Args:
        first: First isolation group of the train split.
        end: One after its last.
        isolation: Numbers of members and slices.

    Raises:
        TrainingError: There are fewer isolation groups than slices.
    """
    members, slices = isolation.groups, isolation.slices
    if members * slices > end - first:
        raise TrainingError(
            f"isolation needs {members} x {slices} groups of people, the train split has {end - first}",
            hint="lower isolation.groups or isolation.slices; a dataset's `groups` is fixed for its life",
        )
    return tuple(
        tuple(tuple(range(first + member + members * part, end, members * slices)) for part in range(slices))
        for member in range(members)
    )


def plan_members(
    version: DatasetVersion, isolation: Isolation, *, seed: int, depends_on: Mapping[str, Any]
) -> tuple[Member, ...]:
    """Members, slices and keys over a dataset version.

    Args:
        version: The data.
        isolation: Numbers of members and slices.
        seed: Of the sweep; each member's seed follows from it.
        depends_on: What the weights depend on beside data and seed: digests of trainer, lock and code, parameters,
            epochs of a stage.

    Raises:
        TrainingError: Fewer isolation groups than slices, or a first slice without rows.
    """
    parts = split_groups(*version.schema.splits["train"], isolation)
    shards = version.manifest.shards_of("train")
    members = []
    for number, groups in enumerate(parts):
        member_seed = derive_seed(seed, "member", number)
        shared = {**depends_on, "seed": member_seed, "schema": version.manifest.schema_sha256}
        slices = tuple(_slice(groups[: stage + 1], shards, depends_on=shared) for stage in range(len(groups)))
        if not slices[0].shards:
            raise TrainingError(
                f"member {number} has no rows in its first slice (isolation groups {groups[0]})",
                hint="lower isolation.groups or isolation.slices",
            )
        members.append(Member(number, member_seed, slices))
    return tuple(members)


def _slice(stages: tuple[tuple[int, ...], ...], shards: Iterable[Shard], *, depends_on: Mapping[str, Any]) -> Slice:
    """The last of some stages; its key covers the stages before it one by one, as they were read."""
    read = tuple(shard for shard in shards if any(shard.group in groups for groups in stages))
    content = [digest_shards([shard for shard in read if shard.group in groups]) for groups in stages]
    key = hex_of(digest_json({**depends_on, "slices": [list(groups) for groups in stages], "content": content}))
    return Slice(key=key, groups=stages[-1], shards=read)


def find_slices(checkpoints: Path, *, shards: Iterable[str]) -> list[Path]:
    """Folders of slice checkpoints, members' weights and ensembles that have seen one of these shards.

    Args:
        checkpoints: Of the project.
        shards: Their sha256, 64 hex digits.
    """
    wanted = set(shards)
    files = [
        path for name in (SLICES_FOLDER, ENSEMBLES_FOLDER) for path in (checkpoints / name).glob(f"*/{SHARDS_FILE}")
    ]
    return sorted(path.parent for path in files if wanted & set(json.loads(path.read_text(encoding="utf-8"))["shards"]))
