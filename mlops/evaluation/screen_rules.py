"""Rules of screens and of attacks beyond evasion. Leaves to others: what every rule states (rule.py), measuring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlops.evaluation.rule import Rate, Rule
from mlops.evaluation.surface_rules import Change


class WeakSlicesRule(Rule):
    """No corner of the inputs that a search can find is answered worse than `minimum`."""

    kind: Literal["weak-slices"]
    minimum: Rate
    """Of the share of right answers in the worst slice found."""
    least_rows: int = Field(default=100, ge=50)
    """Of a slice, in each half of the test rows."""


class ForcedRule(Rule):
    """Nobody can force the favourable answer (or another) by what a person can change."""

    kind: Literal["forced"]
    towards: str = ""
    """The answer that is forced; empty is the favourable class."""
    maximum: Rate
    """Of the share of rows answered otherwise that an attack turns to it."""
    changes: tuple[Change, ...] = Field(min_length=1)
    rows: int = Field(default=1000, ge=50)
    steps: int = Field(default=20, ge=1, le=200)


class PoisoningRule(Rule):
    """Training rows that stand apart inside the model: activation clustering and spectral signatures, as a screen."""

    kind: Literal["poisoning"]
    maximum: Rate
    """Of the share of training rows that stand apart."""
    rows: int = Field(default=4000, ge=400)


class ExtractionRule(Rule):
    """How well a copy made from answers alone agrees with the model; advisory by nature."""

    kind: Literal["extraction"]
    queries: tuple[int, ...] = Field(default=(100, 300, 1000, 3000), min_length=1)
    maximum: Rate
    """Of the agreement at the largest number of queries."""


class LatencyRule(Rule):
    """One row is answered fast enough, by the artefact on one thread."""

    kind: Literal["latency"]
    maximum_milliseconds: float = Field(gt=0)
    share: float = Field(default=0.95, gt=0.5, lt=1)
    """Of calls that must be within it."""
    calls: int = Field(default=400, ge=100, le=10_000)


ScreenRule = WeakSlicesRule | ForcedRule | PoisoningRule | ExtractionRule | LatencyRule
