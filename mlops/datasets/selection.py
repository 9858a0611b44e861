"""Which rows of a split take part: isolation groups, an audit pool drawn by seed, people who must not be read.

A selection is a value with a digest, part of the plan's key. Leaves to others: the order (plan.py), what an audit does
with its pool (mlops/evaluation).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlops.errors import DatasetError
from mlops.provenance.digest import digest_json


@dataclass(frozen=True)
class AuditPool:
    """Rows whose taking part is decided by coin, so that membership attacks can be measured."""

    share: float
    """Part of all people in the pool, 0 to 1."""
    pool_seed: int
    """Who is in the pool: the same for all trials of a sweep."""
    trial_seed: int
    """Who of the pool takes part in this trial (probability 1/2 each)."""


@dataclass(frozen=True)
class Selection:
    """Rows of a split that take part; the empty selection is all of them."""

    groups: frozenset[int] | None = None
    """Isolation groups; None is all."""
    excluded: frozenset[bytes] = frozenset()
    """Keyed hashes of people who must not be read, for instance tombstones younger than the version."""
    audit: AuditPool | None = None

    @property
    def digest(self) -> str:
        """`sha256:…`; equal selections have equal digests."""
        audit = self.audit
        return digest_json(
            {
                "groups": None if self.groups is None else sorted(self.groups),
                "excluded": sorted(subject.hex() for subject in self.excluded),
                "audit": None if audit is None else [repr(audit.share), audit.pool_seed, audit.trial_seed],
            }
        )

    @property
    def needs_subjects(self) -> bool:
        """Whether rows are chosen by person, not only by group."""
        return bool(self.excluded) or self.audit is not None


def select_rows(selection: Selection, subjects: list[bytes]) -> npt.NDArray[np.int64]:
    """Numbers of the rows that take part, ascending.

    Args:
        selection: Which.
        subjects: Keyed hash of each row.
    """
    return np.array([number for number, subject in enumerate(subjects) if takes_part(selection, subject)], np.int64)


def takes_part(selection: Selection, subject: bytes) -> bool:
    """Whether a person's rows take part."""
    if subject in selection.excluded:
        return False
    audit = selection.audit
    if audit is None or not is_audited(audit, subject):
        return True
    return _fraction(f"trial {audit.trial_seed}", subject) < 0.5


def is_audited(audit: AuditPool, subject: bytes) -> bool:
    """Whether a person is in the audit pool.

    Raises:
        DatasetError: The share is not between 0 and 1.
    """
    if not 0 <= audit.share <= 1:
        raise DatasetError(f"the share of an audit pool is {audit.share}, not between 0 and 1")
    return _fraction(f"pool {audit.pool_seed}", subject) < audit.share


def _fraction(purpose: str, subject: bytes) -> float:
    digest = hashlib.sha256(purpose.encode() + b"\n" + subject).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
