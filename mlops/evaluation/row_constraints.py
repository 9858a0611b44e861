"""What holds between the columns of every true row: attacks and counterfactuals that would break it are put right.

A number that would exceed the one that bounds it is lowered as far as the row may go; where that does not help, and for
values that exclude each other, the columns go back to what they were. A row that broke a constraint before anybody
changed it proves nothing about the constraint and is left alone.
Leaves to others: what may change of one column (attack_surface.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.surface_rules import Constraint
from mlops.evaluation.verdicts import NotEvaluableError

if TYPE_CHECKING:
    from mlops.training.contract import Contract, InputColumn

Features = dict[str, NDArray[Any]]
Mask = NDArray[np.bool_]
Ranges = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Column to the lowest and highest value `[N]` that each row may take; a column that cannot change is absent."""


@dataclass(frozen=True)
class NumbersInOrder:
    """`lower <= upper + plus`."""

    lower: InputColumn
    upper: InputColumn
    plus: float

    @property
    def columns(self) -> tuple[str, ...]:
        """Whose values it is about."""
        return self.lower.name, self.upper.name

    def find_broken(self, features: Mapping[str, NDArray[Any]]) -> Mask:
        """Rows that do not have it, `[N]`."""
        lower, upper = (features[name].astype(np.float64) for name in self.columns)
        found: Mask = lower > upper + self.plus + 1e-6 * np.maximum(1.0, np.abs(upper))
        return found

    def mend(self, features: Features, broken: Mask, *, ranges: Ranges) -> None:
        """Lower what is too high, as far as the row may go."""
        if self.lower.name not in ranges:
            return
        low, high = (side[broken] for side in ranges[self.lower.name])
        wanted = features[self.upper.name][broken].astype(np.float64) + self.plus
        if self.lower.integer:
            wanted, low = np.floor(wanted), np.ceil(low)
        features[self.lower.name][broken] = np.clip(wanted, low, high)


@dataclass(frozen=True)
class ValuesApart:
    """No row has one of the codes in every one of the columns."""

    codes: Mapping[str, tuple[int, ...]]

    @property
    def columns(self) -> tuple[str, ...]:
        """Whose values it is about."""
        return tuple(self.codes)

    def find_broken(self, features: Mapping[str, NDArray[Any]]) -> Mask:
        """Rows that do not have it, `[N]`."""
        found: Mask = np.logical_and.reduce([np.isin(features[name], codes) for name, codes in self.codes.items()])
        return found

    def mend(self, features: Features, broken: Mask, *, ranges: Ranges) -> None:
        """There is no nearest value: the columns go back to what they were."""


Bond = NumbersInOrder | ValuesApart


def plan_constraints(constraints: tuple[Constraint, ...], *, contract: Contract) -> tuple[Bond, ...]:
    """Constraints with the model's columns and codes; what is about other columns than the model's is left out.

    Raises:
        NotEvaluableError: A column is of another kind, or has no such category.
    """
    columns = {column.name: column for column in contract.inputs}
    return tuple(_plan(one, columns) for one in constraints if set(one.columns) <= set(columns))


def _plan(constraint: Constraint, columns: Mapping[str, InputColumn]) -> Bond:
    wanted = "category" if constraint.never else "number"
    for name in constraint.columns:
        if columns[name].kind != wanted:
            raise NotEvaluableError(
                "constraint-wrong", f"{name} is a {columns[name].kind}, the constraint needs a {wanted}"
            )
    if not constraint.never:
        return NumbersInOrder(columns[constraint.column], columns[constraint.at_most], constraint.plus)
    codes = {}
    for name, values in constraint.never.items():
        known = columns[name].categories or ()
        strangers = [value for value in values if value not in known]
        if strangers:
            raise NotEvaluableError("category-missing", f"{name} has no category {', '.join(strangers)}")
        codes[name] = tuple(known.index(value) for value in values)
    return ValuesApart(codes)


def keep_constraints(features: Features, own: Features, bonds: tuple[Bond, ...], *, ranges: Ranges) -> None:
    """Change `features` so that they break nothing that `own`, the unchanged rows, keep."""
    excused = [bond.find_broken(own) for bond in bonds]
    for bond, excuse in zip(bonds, excused, strict=True):
        bond.mend(features, bond.find_broken(features) & ~excuse, ranges=ranges)
    is_mended = False
    while not is_mended:  # each turn gives at least one more value back, so it ends
        is_mended = True
        for bond, excuse in zip(bonds, excused, strict=True):
            broken = bond.find_broken(features) & ~excuse
            for name in bond.columns:
                features[name][broken] = own[name][broken]
            is_mended = is_mended and not broken.any()


def find_newly_broken(features: Features, own: Features, bonds: tuple[Bond, ...]) -> Mask:
    """Rows that break what they kept before, `[N]`."""
    found = np.zeros(len(next(iter(own.values()))), dtype=bool)
    for bond in bonds:
        found |= bond.find_broken(features) & ~bond.find_broken(own)
    return found
