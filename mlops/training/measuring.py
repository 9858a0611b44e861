"""Validation metrics that most classifiers report: loss, accuracy, and how groups of a sensitive column differ.

They are sums of counts over all workers, so they do not depend on the number of workers. They steer a sweep; leaves to
others: bounds and verdicts on test data (mlops/evaluation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from mlops.errors import TrainingError

if TYPE_CHECKING:
    from mlops.datasets.reader import Batch

MOST_GROUPS = 64


def measure(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    *,
    sensitive: str | None,
    sum_over_workers: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, float]:
    """Loss, accuracy and, for a sensitive column, the gaps between its groups.

    Args:
        model: In evaluation mode; columns to logits [B, C].
        batches: This worker's part.
        sensitive: Name of a sensitive column, or None.
        sum_over_workers: Adds a tensor up over all workers.

    Returns:
        `loss` (mean cross-entropy), `accuracy`, `equalized_odds_gap_<sensitive>` (largest difference between groups of
        P(answer | label)) and `selection_rate_gap_<sensitive>` (largest difference of P(answer)).
    """
    counts: torch.Tensor | None = None
    loss = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            logits = model(batch.features)
            groups = batch.sensitive[sensitive] if sensitive is not None else torch.zeros_like(batch.label)
            found = _count(groups, batch.label, logits.argmax(1), classes=logits.shape[1])
            counts = found if counts is None else counts + found
            total = torch.nn.functional.cross_entropy(logits.float(), batch.label, reduction="sum")
            loss += total.double().cpu()
    if counts is None:
        raise TrainingError("this worker got no rows to measure on", hint="the split needs at least one row per worker")
    counts = sum_over_workers(counts)
    loss = sum_over_workers(loss.to(counts.device)).cpu()
    rows = counts.sum()
    metrics = {
        "loss": float(loss / rows),
        "accuracy": float(counts.sum(0).diagonal().sum() / rows),
    }
    if sensitive is not None:
        metrics[f"equalized_odds_gap_{sensitive}"] = _widest(counts, counts.sum(2, keepdim=True))
        by_answer = counts.sum(1)
        metrics[f"selection_rate_gap_{sensitive}"] = _widest(by_answer, by_answer.sum(1, keepdim=True))
    return metrics


def _count(groups: torch.Tensor, labels: torch.Tensor, answers: torch.Tensor, *, classes: int) -> torch.Tensor:
    """Rows by group, label and answer: float64 [MOST_GROUPS, C, C]."""
    if len(groups) and int(groups.max()) >= MOST_GROUPS:
        raise TrainingError(f"a sensitive column has more than {MOST_GROUPS} categories", hint="use broader bands")
    cells = (groups * classes + labels) * classes + answers
    flat = torch.bincount(cells, minlength=MOST_GROUPS * classes * classes)
    return flat.view(MOST_GROUPS, classes, classes).double()


def _widest(part: torch.Tensor, whole: torch.Tensor) -> float:
    """Largest difference over groups of part / whole; groups without rows say nothing."""
    present = whole > 0
    rates = part / whole.clamp(min=1)
    low = torch.where(present, rates, torch.inf).amin(0)
    high = torch.where(present, rates, -torch.inf).amax(0)
    return float((high - low).clamp(min=0).max())
