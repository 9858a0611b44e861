"""What a model takes and gives, as `contract.json` in the image says, and the checks of one column's values.

Checked values stay plain lists (or arrays, when they came in binary): arrays are made once per run of the model.
Leaves to others: the wire formats (inference.py, scoring.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBERS = {int, float}
_SHOWN_CATEGORIES = 12


class BadRequestError(Exception):
    """The request cannot be answered and why, for the caller.

    Args:
        message: One sentence.
        status: The HTTP status, 4xx.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Column:
    """One input of the model."""

    name: str
    dtype: str
    """`float32` or `int64`."""
    shape: tuple[int, ...]
    """Per row."""
    kind: str
    minimum: float | None
    maximum: float | None
    integer: bool
    categories: tuple[str, ...] | None

    @cached_property
    def codes(self) -> dict[str, int]:
        """Category name to code."""
        return {name: code for code, name in enumerate(self.categories or ())}

    @cached_property
    def width(self) -> int:
        """Values per row."""
        return math.prod(self.shape)

    @cached_property
    def low(self) -> float:
        """Smallest value that is accepted."""
        if self.categories is not None:
            return 0
        return self._floor if self.minimum is None else self.minimum

    @cached_property
    def high(self) -> float:
        """Largest value that is accepted."""
        if self.categories is not None:
            return len(self.categories) - 1
        return self._ceiling if self.maximum is None else self.maximum

    @cached_property
    def _floor(self) -> float:
        return -_FLOAT32_MAX if self.dtype == "float32" else -(2**63)

    @cached_property
    def _ceiling(self) -> float:
        return _FLOAT32_MAX if self.dtype == "float32" else 2**63 - 1

    @cached_property
    def is_whole(self) -> bool:
        """Only whole numbers are accepted."""
        return self.integer or self.dtype == "int64"

    def check_numbers(self, values: list[Any]) -> list[Any]:
        """Flat numbers (codes for a category) that fit this column.

        Raises:
            BadRequestError: A value is no number, out of range, or not whole where it must be.
        """
        if not set(map(type, values)) <= _NUMBERS:
            wrong = next(value for value in values if type(value) not in _NUMBERS)
            raise BadRequestError(f"input {self.name!r}: {_show(wrong)} is not a number")
        low, high = min(values), max(values)
        if not (self.low <= low and high <= self.high):  # false for NaN too
            wrong = low if not low >= self.low else high
            raise BadRequestError(f"input {self.name!r}: {_show(wrong)} is not between {self.low:g} and {self.high:g}")
        if self.is_whole:
            for value in values:
                if type(value) is float and not value.is_integer():
                    raise BadRequestError(f"input {self.name!r}: {_show(value)} is not a whole number")
        return values

    def check_array(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The same for an array that came in binary.

        Raises:
            BadRequestError: as `check_numbers`.
        """
        low, high = values.min(), values.max()  # NaN spreads to both
        if not (low >= self.low and high <= self.high):
            wrong = next(value for value in values.ravel().tolist() if not self.low <= value <= self.high)
            raise BadRequestError(f"input {self.name!r}: {_show(wrong)} is not between {self.low:g} and {self.high:g}")
        if self.is_whole and values.dtype.kind == "f" and not (values == np.floor(values)).all():
            raise BadRequestError(f"input {self.name!r}: only whole numbers are accepted")
        return values.astype(self.dtype, copy=False)

    def encode(self, names: Sequence[Any]) -> list[int]:
        """Category names to codes.

        Raises:
            BadRequestError: A name that training never saw.
        """
        if self.categories is None:
            raise BadRequestError(f"input {self.name!r} takes numbers, not strings")
        codes = self.codes
        try:
            return [codes[name] for name in names]
        except (KeyError, TypeError):
            wrong = next(name for name in names if not isinstance(name, str) or name not in codes)
            known = ", ".join(self.categories[:_SHOWN_CATEGORIES])
            more = ", …" if len(self.categories) > _SHOWN_CATEGORIES else ""
            raise BadRequestError(f"input {self.name!r}: {_show(wrong)} is not one of {known}{more}") from None

    def check_values(self, values: list[Any]) -> list[Any]:
        """Flat values of either spelling: names of categories, or numbers.

        Raises:
            BadRequestError: as `encode` and `check_numbers`.
        """
        if self.categories is not None and values and type(values[0]) not in _NUMBERS:
            return self.encode(values)
        return self.check_numbers(values)


@dataclass(frozen=True)
class OutputColumn:
    """One output of the model."""

    name: str
    shape: tuple[int, ...]
    """Per row."""


@dataclass(frozen=True)
class Contract:
    """Inputs, outputs and classes of one model."""

    product: str
    inputs: tuple[Column, ...]
    outputs: tuple[OutputColumn, ...]
    classes: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Inputs by name."""
        return {column.name: column for column in self.inputs}

    def require_complete(self, given: Any) -> None:
        """Every input is there and none besides.

        Raises:
            BadRequestError: Names what is missing or unknown.
        """
        if len(given) == len(self.inputs) and all(name in self.by_name for name in given):
            return
        missing = [column.name for column in self.inputs if column.name not in given]
        unknown = [str(name) for name in given if name not in self.by_name]
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"unknown: {', '.join(unknown[:20])}"] if unknown else []
        raise BadRequestError(f"inputs do not match the model's ({'; '.join(parts)})")


def load_contract(path: Path) -> Contract:
    """Read contract.json. The image was built from a checked one: anything wrong here is a fault."""
    content = json.loads(path.read_text("utf-8"))
    if content["version"] != 1:
        raise ValueError(f"{path}: version {content['version']} is unknown to this server")
    return Contract(
        product=content["product"],
        inputs=tuple(_read_column(item) for item in content["inputs"]),
        outputs=tuple(OutputColumn(name=item["name"], shape=tuple(item["shape"])) for item in content["outputs"]),
        classes=tuple(content["classes"]),
    )


def flatten(values: Any, *, shape: Sequence[int], say: Callable[[], str]) -> list[Any]:
    """Nested lists of exactly `shape`, or an already flat list of that many values, as one flat list.

    Raises:
        BadRequestError: Another number of values, or ragged lists.
    """
    if not isinstance(values, list):
        raise BadRequestError(f"{say()}: data must be a list")
    flat = values
    if values and type(values[0]) is list:
        for size in shape[:-1]:
            if len(flat) != size and flat is values:
                raise BadRequestError(f"{say()}: data does not have the shape {list(shape)}")
            if not all(type(part) is list for part in flat):
                raise BadRequestError(f"{say()}: data is not nested evenly")
            widths = set(map(len, flat))
            if len(widths) > 1:
                raise BadRequestError(f"{say()}: data is not nested evenly")
            flat = [value for part in flat for value in part]
            if not flat or type(flat[0]) is not list:
                break
    count = math.prod(shape)
    if len(flat) != count:
        raise BadRequestError(f"{say()}: {len(flat)} values do not fill the shape {list(shape)}")
    return flat


def _read_column(item: dict[str, Any]) -> Column:
    categories = item.get("categories")
    return Column(
        name=item["name"],
        dtype=item["dtype"],
        shape=tuple(item["shape"]),
        kind=item["kind"],
        minimum=item.get("minimum"),
        maximum=item.get("maximum"),
        integer=bool(item.get("integer")),
        categories=None if categories is None else tuple(categories),
    )


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:60]) if isinstance(value, str) else text[:60]
