"""What a candidate's sweep left behind for the privacy audit: every trial's answers about the rows of the audit pool.

Leaves to others: writing it (mlops/training/audit_pool), the attack (reference_membership.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from mlops.evaluation.reference_membership import AuditPool
from mlops.places import Places
from mlops.training.audit_pool import AuditMatrix, load_audits
from mlops.training.candidate import Candidate

if TYPE_CHECKING:
    import pyarrow as pa


def load_audit_matrix(places: Places, candidate: Candidate) -> AuditMatrix | None:
    """Every finished trial of the candidate's sweep; None when it had no audit pool, or its files are gone.

    Raises:
        TrainingError: The trials had different pools.
    """
    folder = places.checkpoints / str(_origin(candidate).get("sweep", ""))
    trials = {int(path.name): path for path in folder.glob("[0-9]*") if path.is_dir() and path.name.isdigit()}
    return load_audits(trials)


def load_audit(places: Places, candidate: Candidate) -> AuditPool | None:
    """The candidate's own trial as the target and all others as references; None when the sweep left no pool."""
    matrix, origin = load_audit_matrix(places, candidate), _origin(candidate)
    if matrix is None or origin.get("trial") not in matrix.trials:
        return None
    own = matrix.trials.index(int(origin["trial"]))
    confidences = special.expit(matrix.scores.astype(np.float64))
    return AuditPool(
        is_member=matrix.members[own],
        target=confidences[own],
        references=np.delete(confidences, own, axis=0),
        membership=np.delete(matrix.members, own, axis=0),
        accountant=origin.get("privacy"),
    )


def trained_rows(train: pa.Table, *, places: Places, candidate: Candidate) -> pa.Table:
    """The rows of the train split that this candidate was trained on: without its half of the audit pool."""
    matrix, origin = load_audit_matrix(places, candidate), _origin(candidate)
    if matrix is None or origin.get("trial") not in matrix.trials:
        return train
    is_in = matrix.members[matrix.trials.index(int(origin["trial"]))]
    return train.take(np.setdiff1d(np.arange(train.num_rows), matrix.rows[~is_in]))


def _origin(candidate: Candidate) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((candidate.folder / "params.json").read_text(encoding="utf-8"))
    return content
