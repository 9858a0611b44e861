"""REF, the one way to name things on the command line.

`sha256:…`, `PRODUCT@NUMBER`, `PRODUCT@ALIAS`, `ENVIRONMENT`, `run:…`, `dataset:…`, `commit:…`.
Leaves to others: looking it up (lineage.py, mlops/deploy for environments).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mlops.errors import ProjectError

ReferenceKind = Literal["digest", "version", "environment", "run", "dataset", "commit"]

FORMS = (
    "sha256:<8 to 64 digits>, PRODUCT@NUMBER, PRODUCT@ALIAS, ENVIRONMENT, run:ID, dataset:NAME[@DIGEST], commit:HASH"
)

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_PATTERNS: tuple[tuple[ReferenceKind, re.Pattern[str]], ...] = (
    ("digest", re.compile(r"(?P<name>sha256:[0-9a-f]{8,64})")),
    ("run", re.compile(rf"run:(?P<name>{_NAME})")),
    ("dataset", re.compile(rf"dataset:(?P<name>{_NAME})(@(?P<selector>[0-9a-z:.]+))?")),
    ("commit", re.compile(r"commit:(?P<name>[0-9a-f]{7,40})")),
    ("version", re.compile(rf"(?P<name>{_NAME})@(?P<selector>{_NAME})")),
    ("environment", re.compile(rf"(?P<name>{_NAME})")),
)


@dataclass(frozen=True)
class Reference:
    """A parsed REF."""

    kind: ReferenceKind
    name: str
    """The digest or its beginning, product, environment, run, dataset or commit."""
    selector: str | None = None
    """After the `@`: version number, alias, or digest of a dataset version."""

    @property
    def number(self) -> int | None:
        """Version number, when the selector is one."""
        return int(self.selector) if self.selector is not None and self.selector.isdecimal() else None

    def __str__(self) -> str:
        prefix = f"{self.kind}:" if self.kind in ("run", "dataset", "commit") else ""
        return f"{prefix}{self.name}{f'@{self.selector}' if self.selector else ''}"


def parse_reference(text: str) -> Reference:
    """Text of a REF to its value; `str()` of the value is the text again.

    Raises:
        ProjectError: Not a REF.
    """
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match:
            return Reference(kind, match["name"], match.groupdict().get("selector"))
    raise ProjectError(f"{text!r} is not a reference", hint=f"write one of: {FORMS}")
