"""What every check of a policy states, whatever its kind. Leaves to others: the kinds (policy.py and *_rules.py)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from mlops.specs import Spec
from mlops.units import Duration

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Sentence = Annotated[str, StringConstraints(min_length=15, strip_whitespace=True)]
Rate = Annotated[float, Field(ge=0, le=1)]


class Rule(Spec):
    """What every check of a policy states."""

    name: Name
    title: str = ""
    owner: str = Field(min_length=1)
    """Who answers for the threshold."""
    reason: Sentence
    """Why the threshold is where it is."""
    blocking: bool = True
    """False: advisory, shown and never stopping."""
    undecided: Literal["block", "report"] = "block"
    undecided_reason: str = ""
    """Why an UNDECIDED may go through; required with `undecided: report`."""
    time_limit: Duration = 60.0
    """After it the check is UNDECIDED (time-out)."""

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if (self.undecided == "report") != (len(self.undecided_reason) >= 15):
            raise ValueError("`undecided: report` needs an `undecided_reason` of a sentence, and only it has one")
        return self


class SlicedRule(Rule):
    """A rule that may be asked of every group of some attributes and their intersections."""

    by: tuple[str, ...] = ()
    """Columns; empty is overall."""
