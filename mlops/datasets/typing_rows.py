"""Untyped columns become typed ones; everything that is not allowed is counted by column, and no row is dropped.

Pure: raw table in, typed table and violations out. Leaves to others: reading files (formats.py), shards (shards.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlops.datasets.formats import RawBlock
from mlops.datasets.recipe import Recipe, RecipeColumn
from mlops.datasets.schema import SUBJECT_COLUMN, Column
from mlops.datasets.subjects import HASH_BYTES, hash_subjects
from mlops.errors import DatasetError

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LARGEST = float(np.finfo(np.float32).max)
EXAMPLES = 3


@dataclass
class Violations:
    """Values that are not allowed: how many by column and problem, with a few examples."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, column: str, problem: str, *, count: int, examples: Iterable[str] = ()) -> None:
        """Count `count` values."""
        if not count:
            return
        self.counts[column, problem] += count
        shown = self.examples.setdefault((column, problem), [])
        shown.extend(value for value in dict.fromkeys(examples) if value not in shown)
        del shown[EXAMPLES:]

    def render_lines(self) -> tuple[str, ...]:
        """One line per column and problem."""
        lines = []
        for (column, problem), count in sorted(self.counts.items()):
            shown = ", ".join(repr(value[:40]) for value in self.examples.get((column, problem), []))
            lines.append(f"{column}: {count} values {problem}" + (f", e.g. {shown}" if shown else ""))
        return tuple(lines)


def arrow_type(column: Column) -> pa.DataType:
    """How a column lies in shards."""
    if column.kind == "tensor":
        return pa.list_(pa.field("item", pa.float32(), nullable=False), column.values_per_row)
    return pa.int64() if column.kind == "category" else pa.float32()


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Columns of a shard: the dataset's, then the keyed hash of the subject."""
    fields = [pa.field(column.name, arrow_type(column), nullable=False) for column in columns]
    return pa.schema([*fields, pa.field(SUBJECT_COLUMN, pa.binary(HASH_BYTES), nullable=False)])


def type_block(block: RawBlock, recipe: Recipe, *, key: bytes, violations: Violations) -> pa.Table:
    """Typed rows of a raw block; where a violation was counted the values mean nothing.

    Raises:
        DatasetError: A raw column that the recipe names is not there.
    """
    columns = [_type_column(block, column, recipe, violations) for column in recipe.columns]
    subjects = pa.array(hash_subjects(_subject_ids(block, recipe, violations), key=key), pa.binary(HASH_BYTES))
    return pa.Table.from_arrays([*columns, subjects], schema=arrow_schema(recipe.columns))


def _subject_ids(block: RawBlock, recipe: Recipe, violations: Violations) -> list[str]:
    if recipe.subject.file_and_line:
        first = block.first_line
        return [f"{block.file_name}:{line}" for line in range(first, first + block.table.num_rows)]
    texts = _texts(block, str(recipe.subject.column), recipe)
    ids: list[str] = texts.to_pylist()
    violations.add("subject", "are empty", count=sum(1 for value in ids if not value))
    return ids


def _type_column(block: RawBlock, column: RecipeColumn, recipe: Recipe, violations: Violations) -> pa.Array:
    if column.kind == "tensor":
        return _type_tensor(block, column, recipe, violations)
    texts = _texts(block, column.raw_name, recipe)
    if column.kind == "number":
        return _type_number(texts, column, violations)
    if column.bins:
        numbers = _parse_numbers(texts, column, violations)
        return pa.array(np.searchsorted(np.asarray(column.bins), numbers, side="right").astype(np.int64))
    return _type_category(texts, column, violations)


def _texts(block: RawBlock, name: str, recipe: Recipe) -> pa.Array:
    if name not in block.table.column_names:
        known = ", ".join(block.table.column_names[:40])
        raise DatasetError(f"{block.file_name} has no column {name!r}", hint=f"its columns: {known}")
    values = block.table.column(name).combine_chunks()
    if not pa.types.is_string(values.type):
        values = _cast_to_text(values, name, block)
    values = pc.fill_null(values, "")
    return pc.utf8_trim_whitespace(values) if getattr(recipe.format, "trim", True) else values


def _cast_to_text(values: pa.Array, name: str, block: RawBlock) -> pa.Array:
    try:
        return pc.cast(values, pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{block.file_name}: column {name!r} holds {values.type} where the recipe wants one value a row",
            hint="write one value a row; `kind: tensor` reads lists of numbers",
        ) from error


def _type_category(texts: pa.Array, column: RecipeColumn, violations: Violations) -> pa.Array:
    codes = {value: code for code, value in enumerate(column.categories or ())}
    codes.update({raw: codes[category] for raw, category in column.aliases.items()})
    encoded = texts.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    table = np.array([codes.get(value, -1) for value in values] or [-1], dtype=np.int64)
    result = table[encoded.indices.to_numpy()]
    strangers = [value for value in values if value not in codes]
    violations.add(column.name, "are not among `categories`", count=int((result < 0).sum()), examples=sorted(strangers))
    return pa.array(result)


def _type_number(texts: pa.Array, column: RecipeColumn, violations: Violations) -> pa.Array:
    numbers = _parse_numbers(texts, column, violations)
    finite = np.nan_to_num(numbers)
    if column.integer:
        violations.add(column.name, "are not whole", count=int((finite != np.floor(finite)).sum()))
    if column.minimum is not None:
        violations.add(column.name, f"are below {column.minimum:g}", count=int((numbers < column.minimum).sum()))
    if column.maximum is not None:
        violations.add(column.name, f"are above {column.maximum:g}", count=int((numbers > column.maximum).sum()))
    return pa.array(numbers.astype(np.float32))


def _parse_numbers(texts: pa.Array, column: RecipeColumn, violations: Violations) -> np.ndarray:
    """float64 values; NaN where a value was counted as a violation."""
    try:
        numbers = np.array(pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        if bool((np.abs(numbers) <= _LARGEST).all()):
            return numbers
    except pa.ArrowInvalid:
        pass
    # Some value is no number, or is spelled nan or inf, or is too large: find out which.
    is_missing = pc.equal(texts, "").to_numpy(zero_copy_only=False)
    is_number = pc.match_substring_regex(texts, _NUMBER).to_numpy(zero_copy_only=False)
    if column.fill is None:
        violations.add(column.name, "are missing and the recipe gives no `fill`", count=int(is_missing.sum()))
    is_wrong = ~is_number & ~is_missing
    strangers = pc.unique(texts.filter(pa.array(is_wrong))).to_pylist()
    violations.add(column.name, "are not numbers", count=int(is_wrong.sum()), examples=sorted(strangers))
    safe = pc.if_else(pa.array(is_number), texts, "nan")
    numbers = np.array(pc.cast(safe, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    violations.add(column.name, "are too large for float32", count=int((np.abs(numbers) > _LARGEST).sum()))
    if column.fill is not None:
        numbers[is_missing] = column.fill
    return numbers


def _type_tensor(block: RawBlock, column: RecipeColumn, recipe: Recipe, violations: Violations) -> pa.Array:
    table = block.table
    if column.from_range is None:
        if column.raw_name not in table.column_names:
            raise DatasetError(f"{block.file_name} has no column {column.raw_name!r}")
        flat = pc.list_flatten(table.column(column.raw_name).combine_chunks()).to_numpy(zero_copy_only=False)
        values = np.asarray(flat, dtype=np.float64).reshape(table.num_rows, -1)
    else:
        names = table.column_names[slice(*column.from_range)]
        parts = [_parse_numbers(_texts(block, name, recipe), column, violations) for name in names]
        values = np.stack(parts, axis=1) if parts else np.zeros((table.num_rows, 0))
    if values.shape[1] != column.values_per_row:
        raise DatasetError(
            f"{column.name}: rows have {values.shape[1]} values, its shape asks for {column.values_per_row}"
        )
    scaled = (values / column.divide_by).astype(np.float32)
    low = -np.inf if column.minimum is None else column.minimum
    high = np.inf if column.maximum is None else column.maximum
    outside = ~((scaled >= low) & (scaled <= high))
    violations.add(column.name, "are outside `minimum` to `maximum` or not finite", count=int(outside.sum()))
    return pa.FixedSizeListArray.from_arrays(pa.array(scaled.reshape(-1)), type=arrow_type(column))
