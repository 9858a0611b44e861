"""Rules of the further privacy checks. Leaves to others: what every rule states (rule.py), measuring (checks/)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlops.evaluation.rule import Rate, Rule


class AttributeInferenceRule(Rule):
    """Who knows all of a row but one attribute cannot tell it better with the model than without."""

    kind: Literal["attribute-inference"]
    column: str
    """A category column: an input of the model, or an attribute of the rows."""
    maximum: Rate
    """Of the share of rows told rightly, above the better of baseline and majority."""
    rows: int = Field(default=4000, ge=400)


class ExposureRule(Rule):
    """Rows of the audit pool are canaries: how many bits easier the trained ones are to guess (a stranger has 1.44)."""

    kind: Literal["exposure"]
    maximum_bits: float = Field(gt=1.4427, le=20)


class InversionRule(Rule):
    """Climbing the favourable answer from nowhere gives no likeness of the people in the training data."""

    kind: Literal["inversion"]
    maximum: Rate
    """Of the correlation between what inversion finds for a class and the mean row of that class."""
    steps: int = Field(default=200, ge=10, le=2000)


class ExplanationMembershipRule(Rule):
    """Where explanations are served: what `mlops model explain` tells gives no more about membership than allowed."""

    kind: Literal["explanation-membership"]
    maximum_auc: float = Field(ge=0.5, le=1)
    rows: int = Field(default=1000, ge=400)
    draws: int = Field(default=200, ge=4)
    """Comparison rows of each explanation; fewer make it noisier than what is served, and the attack weaker."""


class LibraryMembershipRule(Rule):
    """ART's black-box and label-only membership attacks, by the names people know, and the distance to the boundary."""

    kind: Literal["library-membership"]
    attacks: tuple[Literal["black-box", "label-only", "boundary"], ...] = ("black-box", "label-only", "boundary")
    maximum_auc: float = Field(ge=0.5, le=1)
    rows: int = Field(default=1000, ge=400)
    queries: int = Field(default=50, ge=5, le=2000)
    """Labels that the boundary attack asks for about each row."""


PrivacyRule = AttributeInferenceRule | ExposureRule | InversionRule | ExplanationMembershipRule | LibraryMembershipRule
