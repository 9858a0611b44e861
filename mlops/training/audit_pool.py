"""The audit pool: training rows that each trial, and so the winner, includes with probability 1/2 by seeded hash.

The sweep's trials are then the reference models of a membership attack, and the winner's own draw makes it a valid
one-run privacy audit (Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run"). Which rows form
the pool, and which of them a trial saw, are pure functions of seeds and row numbers.
Leaves to others: leaving the rows out (mlops/training/worker), the attack (mlops/evaluation), purging
(mlops/erasure).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from mlops.datasets.reader import Batch
from mlops.errors import TrainingError
from mlops.training.seeds import derive_seed

FILE = "audit.safetensors"
LEAST_ROWS = 16
"""A worker's part of a batch must hold so many rows, so that leaving some out never empties it."""


@dataclass(frozen=True)
class AuditMatrix:
    """What the trials of a sweep say about the rows of the pool."""

    rows: NDArray[np.int64]
    """[P]: row numbers of the train split in manifest order."""
    members: NDArray[np.bool_]
    """[T, P]: whether the trial was trained on the row."""
    scores: NDArray[np.float32]
    """[T, P]: log-odds of the row's true class under the trial's final model."""
    trials: tuple[int, ...]
    """[T]: trial numbers."""


def choose_pool(count: int, *, size: int, seed: int) -> NDArray[np.int64]:
    """The pool: `size` of `count` rows, sorted; the same for all trials of a sweep.

    Raises:
        TrainingError: There are fewer rows than the pool needs.
    """
    if size > count:
        raise TrainingError(f"an audit pool of {size} rows needs more than the {count} rows of the train split")
    hashes = _hash_rows(np.arange(count, dtype=np.uint64), seed=derive_seed(seed, "audit pool"))
    return np.sort(np.argsort(hashes, kind="stable")[:size]).astype(np.int64)


def draw_members(pool: NDArray[np.int64], *, trial_seed: int) -> NDArray[np.bool_]:
    """Which rows of the pool a trial is trained on: each with probability 1/2."""
    hashes = _hash_rows(pool.astype(np.uint64), seed=derive_seed(trial_seed, "audit members"))
    return (hashes >> np.uint64(63)).astype(np.bool_)


def keep_mask(rows: torch.Tensor, *, left_out: NDArray[np.int64]) -> torch.Tensor:
    """Bool [B]: which rows of a batch the trial is trained on.

    Raises:
        TrainingError: The part is too small for leaving rows out.
    """
    if len(rows) < LEAST_ROWS:
        raise TrainingError(
            f"with an audit pool each worker's part of a batch needs {LEAST_ROWS} rows, this one has {len(rows)}",
            hint="use larger batches or set audit_pool: 0",
        )
    return torch.from_numpy(~np.isin(rows.numpy(), left_out))


def select_rows(batch: Batch, mask: torch.Tensor) -> Batch:
    """The rows of a batch where the mask is true."""
    return Batch(
        features={name: column[mask] for name, column in batch.features.items()},
        label=batch.label[mask],
        sensitive={name: column[mask] for name, column in batch.sensitive.items()},
        weight=None if batch.weight is None else batch.weight[mask],
        positions=batch.positions[mask],
        rows=batch.rows[mask],
    )


def score_pool(model: torch.nn.Module, batches: Iterable[Batch], *, pool: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log-odds of the true class for each row of the pool.

    Args:
        model: In evaluation mode, on the CPU.
        batches: All rows of the train split.
        pool: Sorted row numbers.
    """
    scores = np.full(len(pool), np.nan, dtype=np.float32)
    with torch.no_grad():
        for batch in batches:
            wanted = torch.from_numpy(np.isin(batch.rows.numpy(), pool))
            if not bool(wanted.any()):
                continue
            part = select_rows(batch, wanted)
            chances = model(part.features).double().log_softmax(1)
            own = chances.gather(1, part.label[:, None])[:, 0]
            others = torch.log1p(-own.exp().clamp(max=1 - 1e-12))
            scores[np.searchsorted(pool, part.rows.numpy())] = (own - others).float().numpy()
    return scores


def save_audit(
    trial_folder: Path, *, pool: NDArray[np.int64], members: NDArray[np.bool_], scores: NDArray[np.float32]
) -> Path:
    """Write a trial's evidence beside its weights."""
    trial_folder.mkdir(parents=True, exist_ok=True)
    path = trial_folder / FILE
    aside = path.with_name(f".{FILE}")
    save_file({"rows": pool, "members": members.astype(np.uint8), "scores": scores}, aside)
    aside.replace(path)
    return path


def load_audits(trial_folders: Mapping[int, Path]) -> AuditMatrix | None:
    """The matrix over trials that wrote evidence; None when none did.

    Raises:
        TrainingError: The trials had different pools.
    """
    found = {
        number: load_file(folder / FILE)
        for number, folder in sorted(trial_folders.items())
        if (folder / FILE).is_file()
    }
    if not found:
        return None
    first = next(iter(found.values()))["rows"]
    if any(not np.array_equal(audit["rows"], first) for audit in found.values()):
        raise TrainingError("trials of one sweep have different audit pools", hint="run the sweep again")
    return AuditMatrix(
        rows=first,
        members=np.stack([audit["members"].astype(np.bool_) for audit in found.values()]),
        scores=np.stack([audit["scores"] for audit in found.values()]),
        trials=tuple(found),
    )


def _hash_rows(rows: NDArray[np.uint64], *, seed: int) -> NDArray[np.uint64]:
    """SplitMix64 of row and seed (Steele, Lea & Flood 2014), 64 uniform bits a row."""
    with np.errstate(over="ignore"):
        state = (rows + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
