"""What an attacker may change of a row, and nothing else: the constraint that every attack here works under.

Attacks work on flat vectors: one unit per allowed step of a changeable number (of each value of a tensor, as a pixel of
an image), one weight per category of a changeable category column, and the row's number in front (so that everything
unchangeable is looked up, never attacked). `decode` turns a flat vector back into a valid row: ranges and whole numbers
kept, exactly one category, only allowed ones, and what holds between columns.
Leaves to others: what holds between columns (row_constraints.py), the attacks (checks/evasion.py, torch_attacks.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlops.evaluation.judged import columns_as_tensors
from mlops.evaluation.row_constraints import Bond, find_newly_broken, keep_constraints, plan_constraints
from mlops.evaluation.rows import Rows
from mlops.evaluation.surface_rules import Change, Constraint
from mlops.evaluation.verdicts import NotEvaluableError

if TYPE_CHECKING:
    from mlops.training.contract import Contract, InputColumn

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NumberPart:
    """A changeable number, or tensor of numbers, at its positions of the flat vector."""

    column: InputColumn
    start: int
    up: float
    down: float

    @property
    def size(self) -> int:
        """Values per row: 1 for a plain number."""
        return math.prod(self.column.shape)

    @property
    def span(self) -> slice:
        """Positions in the flat vector."""
        return slice(self.start, self.start + self.size)

    @property
    def unit(self) -> float:
        """The larger of both steps: one flat unit."""
        return max(self.up, self.down)


@dataclass(frozen=True)
class CategoryPart:
    """A changeable category column: one weight per category from `start` on."""

    column: InputColumn
    start: int
    allowed: tuple[int, ...]
    """Codes that may be claimed, from low to high where they rise; the row's own is always allowed."""
    rising: bool = False
    """Only codes after the row's own may be claimed, and none by a row whose own is not among them."""

    @property
    def size(self) -> int:
        """Number of categories."""
        return len(self.column.categories or ())

    @property
    def reach(self) -> NDArray[np.bool_]:
        """`[own code, code]`: what a row may claim."""
        found = np.eye(self.size, dtype=bool)
        if not self.rising:
            found[:, list(self.allowed)] = True
        for position, code in enumerate(self.allowed if self.rising else ()):
            found[code, list(self.allowed[position:])] = True
        return found


@dataclass(frozen=True)
class Surface:
    """The allowed changes of N rows."""

    rows: Rows
    numbers: tuple[NumberPart, ...]
    categories: tuple[CategoryPart, ...]
    width: int
    """Of the flat vector, the row number included."""
    bonds: tuple[Bond, ...] = ()
    """What holds between columns."""

    @property
    def radius(self) -> Floats:
        """L∞ radius of each flat position; zero for the row number."""
        radius = np.ones(self.width, dtype=np.float32)
        radius[0] = 0.0
        return radius

    @property
    def limits(self) -> tuple[Floats, Floats]:
        """Lowest and highest flat value of each position over all rows."""
        flat = self.encode()
        low, high = flat.min(axis=0), flat.max(axis=0)
        for part in self.numbers:
            low[part.span] -= 1
            high[part.span] += 1
        for group in self.categories:
            low[group.start : group.start + group.size], high[group.start : group.start + group.size] = 0.0, 1.0
        high[0] = max(high[0], 1.0)
        return low, high

    def row_limits(self) -> tuple[Floats, Floats]:
        """Lowest and highest flat value of each position of each row, `[N, width]` both."""
        low, high = self.encode(), self.encode()
        for part in self.numbers:
            own = self._values(part)
            least = -np.inf if part.column.minimum is None else part.column.minimum
            most = np.inf if part.column.maximum is None else part.column.maximum
            low[:, part.span] = np.minimum(np.maximum(own - part.down, least), own) / part.unit
            high[:, part.span] = np.maximum(np.minimum(own + part.up, most), own) / part.unit
        for group in self.categories:
            low[:, group.start : group.start + group.size] = 0.0
            high[:, group.start : group.start + group.size] = 1.0
        return low, high

    def encode(self) -> Floats:
        """The unchanged rows as flat vectors `[N, width]`."""
        flat = np.zeros((len(self.rows), self.width), dtype=np.float32)
        flat[:, 0] = np.arange(len(self.rows))
        for part in self.numbers:
            flat[:, part.span] = self._values(part) / part.unit
        for group in self.categories:
            flat[np.arange(len(self.rows)), group.start + self.rows.features[group.column.name]] = 1.0
        return flat

    def decode(self, flat: Floats) -> dict[str, NDArray[Any]]:
        """Flat vectors to valid features: every row keeps to what a person could do."""
        chosen = np.rint(flat[:, 0]).astype(np.int64)
        features = {name: values[chosen].copy() for name, values in self.rows.features.items()}
        for part in self.numbers:
            features[part.column.name] = self._decode_number(part, flat, chosen=chosen)
        for group in self.categories:
            own = self.rows.features[group.column.name][chosen]
            weights = np.where(group.reach[own], flat[:, group.start : group.start + group.size], -np.inf)
            features[group.column.name] = weights.argmax(axis=1).astype(np.int64)
        if self.bonds:
            unchanged = {name: values[chosen] for name, values in self.rows.features.items()}
            numbers = [part for part in self.numbers if not part.column.shape]
            ranges = {part.column.name: self._range(part, unchanged[part.column.name]) for part in numbers}
            keep_constraints(features, unchanged, self.bonds, ranges=ranges)
        return features

    def _values(self, part: NumberPart) -> Floats:
        """The unchanged values of a number or tensor as `[N, size]`."""
        return self.rows.features[part.column.name].reshape(len(self.rows), -1)

    def _decode_number(self, part: NumberPart, flat: Floats, *, chosen: NDArray[np.int64]) -> Floats:
        own = self._values(part)[chosen].astype(np.float64)
        low, high = self._range(part, own)
        wanted = np.nan_to_num(flat[:, part.span].astype(np.float64) * part.unit)
        moved = np.clip(wanted, low, high)
        if part.column.integer:
            moved = np.clip(np.rint(moved), np.ceil(low), np.floor(high))
        unchanged = np.abs(wanted - own) < 1e-4 * part.unit  # float32 units do not round-trip exactly
        return np.where(unchanged, own, moved).astype(np.float32).reshape(len(flat), *part.column.shape)

    @staticmethod
    def _range(part: NumberPart, own: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest value that rows with these own values may take."""
        low, high = own.astype(np.float64) - part.down, own.astype(np.float64) + part.up
        if part.column.minimum is not None:
            low = np.maximum(low, np.minimum(part.column.minimum, own))
        if part.column.maximum is not None:
            high = np.minimum(high, np.maximum(part.column.maximum, own))
        return low, high

    def count_infeasible(self, features: Mapping[str, NDArray[Any]], *, chosen: NDArray[np.int64]) -> int:
        """Rows that break a rule of the surface: an independent check of `decode`."""
        broken = np.zeros(len(chosen), dtype=bool)
        allowed_numbers = {part.column.name: part for part in self.numbers}
        allowed_categories = {part.column.name: part for part in self.categories}
        for name, values in features.items():
            own = self.rows.features[name][chosen]
            if name in allowed_numbers:
                part = allowed_numbers[name]
                slack = 1e-3 * part.unit
                is_outside = (values > own + part.up + slack) | (values < own - part.down - slack)
                if part.column.integer:
                    is_outside |= (values != np.rint(values)) & (values != own)
                broken |= is_outside.reshape(len(chosen), -1).any(axis=1)
            elif name in allowed_categories:
                group = allowed_categories[name]
                is_claimed = values != own
                broken |= ~np.isin(values, group.allowed) & is_claimed
                if group.rising:
                    rank = {code: position for position, code in enumerate(group.allowed)}
                    ranks = [np.array([rank.get(int(code), -1) for code in codes]) for codes in (own, values)]
                    broken |= ((ranks[0] < 0) | (ranks[1] <= ranks[0])) & is_claimed
            else:
                broken |= (values != own).reshape(len(chosen), -1).any(axis=1)
        unchanged = {name: self.rows.features[name][chosen] for name in features}
        broken |= find_newly_broken(dict(features), unchanged, self.bonds)
        return int(broken.sum())


def plan_surface(
    rows: Rows, *, contract: Contract, changes: tuple[Change, ...], constraints: tuple[Constraint, ...] = ()
) -> Surface:
    """Lay out the flat vector of the allowed changes.

    Raises:
        NotEvaluableError: A change names a column that the model has not, or a category that the column has not.
    """
    columns = {column.name: column for column in contract.inputs}
    numbers: list[NumberPart] = []
    categories: list[CategoryPart] = []
    position = 1
    for change in changes:
        column = columns.get(change.column)
        if column is None:
            raise NotEvaluableError("column-missing", f"the model has no input {change.column} that could be changed")
        if column.kind == "category":
            allowed = _allowed_codes(column, change)
            categories.append(CategoryPart(column, start=position, allowed=allowed, rising=change.rising))
            position += len(column.categories or ())
        elif change.up or change.down:
            numbers.append(NumberPart(column, start=position, up=change.up, down=change.down))
            position += numbers[-1].size
        else:
            raise NotEvaluableError("change-impossible", f"{change.column} is a {column.kind}: state what changes")
    bonds = plan_constraints(constraints, contract=contract)
    return Surface(rows, tuple(numbers), tuple(categories), width=position, bonds=bonds)


def _allowed_codes(column: InputColumn, change: Change) -> tuple[int, ...]:
    names = column.categories or ()
    if change.to == "any":
        return tuple(range(len(names)))
    strangers = [name for name in change.to if name not in names]
    if strangers or not change.to:
        raise NotEvaluableError("category-missing", f"{column.name} has no category {', '.join(strangers) or '(none)'}")
    return tuple(names.index(name) for name in change.to)


class RelaxedModel(torch.nn.Module):
    """The judged module as a differentiable function of flat vectors.

    Weights of a category group are shares of their sum; logits are linear in the shares, exact where one category of
    one group is chosen: `logits(own) + Σ_group Σ_k share_k (logits(group = k) - logits(own))`. The gradient is then
    positive only for categories that are better than the present mixture, so that ascent ends at one category.
    """

    def __init__(self, module: torch.nn.Module, surface: Surface, *, contract: Contract) -> None:
        super().__init__()
        self.module = module
        self.surface = surface
        self.columns = columns_as_tensors(surface.rows, contract=contract)

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """`[B, width]` to logits `[B, C]`."""
        flat = flat.float()
        chosen = flat[:, 0].detach().round().long()
        base = {name: values[chosen] for name, values in self.columns.items()}
        for part in self.surface.numbers:
            base[part.column.name] = flat[:, part.span].reshape(len(flat), *part.column.shape) * part.unit
        variants = [(group, code) for group in self.surface.categories for code in group.allowed]
        stacked = {name: torch.cat([values] * (1 + len(variants))) for name, values in base.items()}
        size = len(flat)
        for index, (group, code) in enumerate(variants, start=1):
            stacked[group.column.name][index * size : (index + 1) * size] = code
        logits = self.module(stacked).view(1 + len(variants), size, -1)
        groups = self.surface.categories
        shares = {group.start: self._shares(group, flat, own=base[group.column.name]) for group in groups}
        answer = logits[0]
        for index, (group, code) in enumerate(variants, start=1):
            answer = answer + shares[group.start][:, code, None] * (logits[index] - logits[0])
        return answer

    @staticmethod
    def _shares(group: CategoryPart, flat: torch.Tensor, *, own: torch.Tensor) -> torch.Tensor:
        is_allowed = torch.from_numpy(group.reach)[own].to(flat.dtype)
        weights = flat[:, group.start : group.start + group.size].clamp(min=0) * is_allowed
        return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
