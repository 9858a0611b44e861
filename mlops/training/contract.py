"""What a candidate takes and gives: `contract.json`, the one description that export, gate, registry and server share.

The server has a reader of its own (it imports nothing of mlops); golden requests are generated from this contract.
Leaves to others: reading dataset.yaml (mlops/datasets) and writing the candidate folder (mlops/training/export).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlops.errors import TrainingError

if TYPE_CHECKING:
    from mlops.datasets.schema import Schema

VERSION = 1
Dtype = Literal["float32", "int64"]
Kind = Literal["number", "category", "tensor"]


class ColumnLike(Protocol):
    """What a contract needs of a dataset's column (`mlops.datasets.schema.Column` has it)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> Any: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102
    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def categories(self) -> Sequence[str] | None: ...  # noqa: D102
    @property
    def minimum(self) -> float | None: ...  # noqa: D102
    @property
    def maximum(self) -> float | None: ...  # noqa: D102
    @property
    def integer(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class InputColumn:
    """One input of the exported model, batch dimension left out."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    """Per row; `()` for a scalar."""
    kind: Kind
    minimum: float | None = None
    maximum: float | None = None
    integer: bool = False
    """A number that only takes whole values."""
    categories: tuple[str, ...] | None = None
    """Names of the codes 0, 1, …; None unless `kind` is category."""


@dataclass(frozen=True)
class Output:
    """One output of the exported model, batch dimension left out."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DatasetReference:
    """Which dataset version a candidate was trained on."""

    name: str
    digest: str
    """Manifest digest, `sha256:…`."""


@dataclass(frozen=True)
class Contract:
    """Inputs, outputs and classes of a product's model."""

    product: str
    inputs: tuple[InputColumn, ...]
    outputs: tuple[Output, ...]
    classes: tuple[str, ...]
    dataset: DatasetReference

    def column_sizes(self) -> dict[str, int]:
        """The reserved parameter `columns`: feature name to number of categories, 0 for a number or tensor."""
        return {column.name: len(column.categories or ()) for column in self.inputs}

    def to_json(self) -> dict[str, Any]:
        """The content of contract.json."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Contract:
        """The value of contract.json's content.

        Raises:
            TrainingError: Another version, or a field is missing or unknown.
        """
        if content.get("version") != VERSION:
            raise TrainingError(
                f"contract has version {content.get('version')!r}, this mlops reads {VERSION}",
                hint="export the candidate again with this mlops",
            )
        try:
            return cls(
                product=content["product"],
                inputs=tuple(_read_input(item) for item in content["inputs"]),
                outputs=tuple(Output(**{**item, "shape": tuple(item["shape"])}) for item in content["outputs"]),
                classes=tuple(content["classes"]),
                dataset=DatasetReference(**content["dataset"]),
            )
        except (KeyError, TypeError) as error:
            raise TrainingError(f"contract is not complete: {error}", hint="export the candidate again") from error


def make_contract(
    product: str, *, features: Sequence[ColumnLike], classes: Sequence[str], dataset: DatasetReference
) -> Contract:
    """The contract of a model over these feature columns with these classes."""
    width = len(classes)
    return Contract(
        product=product,
        inputs=tuple(_input_of(column) for column in features),
        outputs=(Output("logits", "float32", (width,)), Output("probabilities", "float32", (width,))),
        classes=tuple(classes),
        dataset=dataset,
    )


def contract_of_schema(schema: Schema, *, product: str, digest: str) -> Contract:
    """The contract of a product over a dataset version: its schema and manifest digest."""
    return make_contract(
        product,
        features=schema.features,
        classes=schema.label.categories or (),
        dataset=DatasetReference(schema.name, digest),
    )


def load_contract(path: Path) -> Contract:
    """Read contract.json.

    Raises:
        TrainingError: Absent or not a contract.
    """
    try:
        return Contract.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read as a contract: {error}") from error


def _input_of(column: ColumnLike) -> InputColumn:
    return InputColumn(
        name=column.name,
        dtype=column.dtype,
        shape=tuple(column.shape),
        kind=column.kind,
        minimum=column.minimum,
        maximum=column.maximum,
        integer=bool(column.integer),
        categories=tuple(column.categories) if column.categories else None,
    )


def _read_input(item: dict[str, Any]) -> InputColumn:
    categories = item.get("categories")
    return InputColumn(
        **{**item, "shape": tuple(item["shape"]), "categories": None if categories is None else tuple(categories)}
    )
