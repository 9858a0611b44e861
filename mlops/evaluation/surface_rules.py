"""What a person could change of a row, as a policy says it.

Leaves to others: enforcing it (attack_surface.py, row_constraints.py).
"""

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
    rising: bool = False
    """Only those that stand after the row's own in `to`, which lists them from low to high: a degree stays."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not (self.up or self.down or self.to):
            raise ValueError("gives nothing to change: set `up`, `down` or `to`")
        if self.rising and isinstance(self.to, str):
            raise ValueError("`rising` needs `to` with the categories from low to high")
        return self


class Constraint(Spec):
    """What holds between columns of every true row: one number bounds another, or values exclude each other."""

    column: str = ""
    """A number that is at most another one …"""
    at_most: str = ""
    """… which is this one …"""
    plus: float = 0
    """… and this: `{column: years_employed, at_most: age, plus: -15}`."""
    never: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Column to categories; no row has one of them in every column."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Whose values it is about."""
        return tuple(self.never) or (self.column, self.at_most)

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        is_order = bool(self.column and self.at_most and self.column != self.at_most)
        if is_order == bool(self.never) or (self.never and (self.column or self.at_most)) or len(self.columns) < 2:
            raise ValueError("needs two different columns: `column` and `at_most`, or `never` with two or more")
        return self
