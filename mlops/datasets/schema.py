"""What a dataset holds: columns with roles and types, isolation groups, splits, credit and lawful use (`dataset.yaml`).

`dataset.yaml` lies inside the dataset folder, so that it is versioned with the shards it describes; the importer writes
it from the recipe. Leaves to others: where rows come from (recipe.py, importing.py) and their bytes (shards.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, StringConstraints, model_validator

from mlops.errors import Reason, Refusal
from mlops.provenance.digest import digest_json
from mlops.specs import Spec

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Role = Literal["feature", "sensitive", "label", "weight", "time", "ignored"]
SUBJECT_COLUMN = "subject"
"""Every shard has this column: HMAC-SHA256 of the subject's id, 32 bytes."""


class Column(Spec):
    """One typed column of the shards.

    A number is stored as float32, a category as the int64 index into `categories`, a tensor as a fixed-size list of
    float32 in C order.
    """

    name: Name
    roles: tuple[Role, ...] = Field(min_length=1)
    kind: Literal["number", "category", "tensor"]
    shape: tuple[int, ...] = ()
    """Dimensions of one row; empty for numbers and categories."""
    categories: tuple[str, ...] | None = None
    """Allowed values in the order of their codes; a missing value is one of them."""
    minimum: float | None = None
    maximum: float | None = None
    integer: bool = False
    """Whether the number only takes whole values."""
    description: str = ""

    @property
    def dtype(self) -> Literal["float32", "int64"]:
        """Type of the values in shards and tensors."""
        return "int64" if self.kind == "category" else "float32"

    @property
    def values_per_row(self) -> int:
        """How many numbers one row holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.name == SUBJECT_COLUMN:
            raise ValueError("the name `subject` is kept for the keyed hash of the subject")
        if (self.kind == "category") != (self.categories is not None):
            raise ValueError("`categories` stands exactly with `kind: category`")
        if self.categories is not None and len(set(self.categories)) != len(self.categories):
            raise ValueError("`categories` names a value twice")
        if (self.kind == "tensor") != bool(self.shape):
            raise ValueError("`shape` stands exactly with `kind: tensor`")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("`minimum` is above `maximum`")
        if "label" in self.roles and len(self.roles) > 1:
            raise ValueError("a label has no other role")
        if "ignored" in self.roles and len(self.roles) > 1:
            raise ValueError("an ignored column has no other role")
        if "sensitive" in self.roles and self.kind != "category":
            raise ValueError("a sensitive column is a category: cut numbers into bands")
        return self


class SubjectKey(Spec):
    """The key of the keyed hash: stated for public data, else the name of a secret."""

    public: str | None = None
    secret: str | None = None
    """Name of the environment variable, or file in `.mlops/keys/`, that holds the key."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.public is None) == (self.secret is None):
            raise ValueError("give exactly one of `public` (public data only) and `secret` (the name of a secret)")
        return self


class Schema(Spec):
    """Everything `dataset.yaml` says."""

    version: Literal[1] = 1
    name: Name
    title: str
    source: str
    """Where the rows come from, for people."""
    credit: str
    licence: str
    lawful_basis: str
    """Why the rows may be used: `public research data`, `consent`, `contract`."""
    purposes: tuple[Name, ...]
    """Allowed uses; a sweep for another purpose is refused."""
    retention_days: int | None = Field(default=None, ge=1)
    """Rows older than this (by the `time` column) must go; None keeps them."""
    subject: str
    """What a subject id is, for people."""
    subject_key: SubjectKey
    groups: int = Field(default=64, ge=1, le=1_000_000)
    """Isolation groups: group = keyed hash of the subject mod this number; fixed for a dataset's life."""
    splits: dict[Name, tuple[int, int]]
    """Split to its half-open range of groups; together they cover all groups once."""
    columns: tuple[Column, ...] = Field(min_length=1)

    @property
    def features(self) -> tuple[Column, ...]:
        """Inputs of a model, in file order."""
        return self._with_role("feature")

    @property
    def sensitive(self) -> tuple[Column, ...]:
        """Attributes that groups are compared by."""
        return self._with_role("sensitive")

    @property
    def label(self) -> Column:
        """What is predicted."""
        return self._with_role("label")[0]

    @property
    def weight(self) -> Column | None:
        """Sample weights, when a column has that role."""
        return next(iter(self._with_role("weight")), None)

    @property
    def time(self) -> Column | None:
        """When a row was collected (seconds since 1970), when a column has that role."""
        return next(iter(self._with_role("time")), None)

    @property
    def digest(self) -> str:
        """`sha256:…` of the meaning of the file: comments do not count, nor do fields at their default."""
        return digest_json(self.model_dump(mode="json", exclude_defaults=True))

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            KeyError: There is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def split_of_group(self, group: int) -> str:
        """The split that holds an isolation group."""
        return next(split for split, (first, end) in self.splits.items() if first <= group < end)

    def _with_role(self, role: Role) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if role in column.roles)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError(f"columns named twice: {sorted({name for name in names if names.count(name) > 1})}")
        labels = self._with_role("label")
        if len(labels) != 1 or labels[0].kind != "category":
            raise ValueError("exactly one column has the role `label`, and it is a category")
        if not self.features:
            raise ValueError("no column has the role `feature`")
        for role in ("weight", "time"):
            if len(self._with_role(role)) > 1:
                raise ValueError(f"at most one column has the role `{role}`")
        expected = 0
        for first, end in sorted(self.splits.values()):
            if first != expected or end <= first:
                raise ValueError(f"splits must cover the groups 0 to {self.groups} once each, as [first, end)")
            expected = end
        if expected != self.groups:
            raise ValueError(f"splits end at group {expected}, the dataset has {self.groups} groups")
        return self


def refuse_purpose(schema: Schema, purpose: str) -> Refusal | None:
    """A *no* when `dataset.yaml` does not allow a use; None when it does."""
    if purpose in schema.purposes:
        return None
    allowed = ", ".join(schema.purposes) or "nothing"
    text = f"dataset {schema.name} may be used for {allowed}, not for {purpose} (lawful basis: {schema.lawful_basis})"
    return Refusal((Reason("purpose-not-allowed", text),))


def render_schema(schema: Schema) -> str:
    """`dataset.yaml`: the same value always gives the same bytes."""
    content = schema.model_dump(mode="json", exclude_defaults=True)
    return "# Written by `mlops dataset import` from the recipe; versioned with the shards.\n" + yaml.safe_dump(
        {"version": 1, **content}, sort_keys=False, allow_unicode=True, width=120
    )
