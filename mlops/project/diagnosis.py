"""What an examination finds, as values: one line per thing looked at, with what to do. Leaves to others: looking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["fine", "note", "broken"]


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    subject: str
    """A file relative to the project, or a part of the machine."""
    status: Status
    """`note`: something is missing or odd that a release does not need; `broken`: it must be mended."""
    text: str
    items: tuple[str, ...] = ()
    """Every problem, `file:line: field: problem` for files."""
    hint: str = ""
    """What to do: a command where there is one."""


@dataclass(frozen=True)
class Examination:
    """Everything that was looked at."""

    machine: tuple[Diagnosis, ...]
    project: tuple[Diagnosis, ...]

    @property
    def is_fine(self) -> bool:
        """Whether nothing is broken."""
        return not any(found.status == "broken" for found in (*self.machine, *self.project))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "is_fine": self.is_fine,
            "machine": [asdict(found) for found in self.machine],
            "project": [asdict(found) for found in self.project],
        }


def count_problems(found: Iterable[Diagnosis]) -> int:
    """How many problems the broken ones have together."""
    return sum(max(1, len(one.items)) for one in found if one.status == "broken")
