"""Rules of fairness beyond gaps of rates. Leaves to others: what every rule states (rule.py), measuring (checks/)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlops.evaluation.rule import Rule


class MeanGapRule(Rule):
    """Largest difference between groups of a mean, as regression asks: of the number, its error, or the loss."""

    kind: Literal["mean-gap"]
    by: tuple[str, ...] = Field(min_length=1)
    of: Literal["score", "error", "loss"] = "score"
    """The favourable class's probability; the label (1 if favourable) minus it; the log loss."""
    maximum: float = Field(gt=0)
    within: tuple[str, ...] = ()
    """Control columns: the gap is asked within each of their groups."""
    minimum_denominator: int = Field(default=30, ge=30)
    """Smaller groups are listed and not tested; while there are any, the check cannot pass."""
