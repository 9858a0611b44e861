"""Rules on behaviour and explanation: what must hold by reason alone, and on what the answers rest.

Leaves to others: measuring (checks/behaviour.py, checks/explainability.py), the other kinds (policy.py).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlops.evaluation.rule import Rate, Rule

Value = float | str
"""A number, or the name of a category."""


class MonotoneRule(Rule):
    """When a number rises, the favourable answer becomes no less likely (or no more likely, if `falls`)."""

    kind: Literal["monotone"]
    column: str
    step: float = Field(gt=0)
    falls: bool = False
    slack: Rate = 0.0
    """Change of probability in the wrong direction that does not count."""
    maximum: Rate
    """Of the share of rows that violate it."""
    rows: int = Field(default=2000, ge=50)


class DirectionRule(Rule):
    """With `better` in a column the favourable answer is no less likely than with `worse`, all else equal."""

    kind: Literal["direction"]
    column: str
    worse: Value
    better: Value
    slack: Rate = 0.0
    """Change of probability in the wrong direction that does not count."""
    maximum: Rate
    """Of the share of rows that violate it."""
    rows: int = Field(default=2000, ge=50)


class InvarianceRule(Rule):
    """Another value of this category column does not change the answer."""

    kind: Literal["invariance"]
    column: str
    maximum: Rate
    """Of the share of rows whose answer changes with any other value."""
    swaps: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Inputs that a counterfactual person would have otherwise too: column to value to other value
    (`relationship: {Husband: Wife, Wife: Husband}`). Asked of the rows that have such a value."""
    rows: int = Field(default=2000, ge=50)


class FunctionalityRule(Rule):
    """A minimum of sense: with these values the answer is clear, whatever the rest of the row says."""

    kind: Literal["functionality"]
    given: dict[str, Value] = Field(min_length=1)
    """Input to the value that every row gets."""
    answer: str
    """The class that must be answered."""
    maximum: Rate
    """Of the share of rows that are answered otherwise."""
    rows: int = Field(default=2000, ge=50)


class AttributionRule(Rule):
    """On what the answers rest: completeness, share of forbidden or proxy inputs, stability of the explanation."""

    kind: Literal["attribution"]
    proxies: tuple[str, ...] = ()
    """Inputs that must carry little, or nothing."""
    maximum_share: Rate | None = None
    """Of the attribution that falls on the proxies, in the mean over rows."""
    maximum_completeness_error: float = Field(default=0.01, gt=0)
    """Largest difference between the sum of a row's attributions and what they must sum to, in log-odds."""
    maximum_seed_change: Rate | None = None
    """Share of the attribution that moves elsewhere with another seed, in the mean over rows."""
    maximum_twin_change: Rate | None = None
    """The same between this model and near-equal trials of its sweep."""
    objective_within: float = Field(default=0.01, gt=0)
    """How far the objective of a near-equal trial may be from the winner's."""
    rows: int = Field(default=300, ge=50)
    draws: int = Field(default=32, ge=4)
    """Training rows that each row is compared with; more make the explanation steadier."""

    @model_validator(mode="after")
    def _proxies_have_a_limit(self) -> Self:
        if bool(self.proxies) != (self.maximum_share is not None):
            raise ValueError("`proxies` and `maximum_share` go together")
        return self


class ArbitrarinessRule(Rule):
    """Few decisions hang on which of several near-equal trials happened to win (predictive multiplicity)."""

    kind: Literal["arbitrary-decisions"]
    objective_within: float = Field(default=0.01, gt=0)
    """How far the objective of a near-equal trial may be from the winner's."""
    maximum: Rate
    """Of the share of test rows that some near-equal trial decides otherwise."""
    least_twins: int = Field(default=1, ge=1)
    """Fewer near-equal trials say nothing."""
