"""What a person could change of a row, as a policy says it. Leaves to others: enforcing it (attack_surface.py)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlops.specs import Spec


class Change(Spec):
    """What a person could change of one column."""

    column: str
    up: float = Field(default=0, ge=0)
    """Largest rise of a number."""
    down: float = Field(default=0, ge=0)
    """Largest fall of a number."""
    to: Literal["any"] | tuple[str, ...] = ()
    """Categories that can be claimed instead."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.up or self.down or self.to):
            raise ValueError("gives nothing to change: set `up`, `down` or `to`")
        return self
