"""Every object of a git repository, reachable or not: what a scan for somebody's rows has to look into.

Leaves to others: what is looked for (mlops/erasure).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import ProvenanceError
from mlops.provenance.git_repository import run_git


@dataclass(frozen=True)
class GitObject:
    """One object."""

    name: str
    """Its hash."""
    kind: str
    """`blob`, `tree`, `commit` or `tag`."""
    content: bytes


def list_objects(root: Path) -> Iterator[GitObject]:
    """Loose and packed objects, also those that no branch leads to.

    Raises:
        ProvenanceError: The repository is damaged.
        EnvironmentFault: git is not installed.
    """
    found = run_git(root, "cat-file", "--batch", "--batch-all-objects", "--unordered").stdout
    at = 0
    while at < len(found):
        end = found.find(b"\n", at)
        fields = found[at:end].decode().split(" ")
        if end < 0 or len(fields) != 3:
            raise ProvenanceError(f"git in {root} cannot read an object: {found[at : at + 80]!r}")
        size = int(fields[2])
        yield GitObject(fields[0], fields[1], found[end + 1 : end + 1 + size])
        at = end + size + 2
