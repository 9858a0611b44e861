"""The files `evaluation/incidents/*.yaml`: one case of something that went wrong and must not again.

A case is synthetic (never a person's literal row): an input, what must hold for it, and what may vary around it.
Leaves to others: judging by it (incident_cases.py), opening and closing incidents (mlops/incidents).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field

from mlops.evaluation.surface_rules import Change
from mlops.provenance.digest import digest_json
from mlops.specs import Spec, load_spec


class Relation(Spec):
    """What must hold."""

    kind: Literal["equals", "is-not", "bound", "invariant", "monotone"]
    answer: str | None = None
    """Class of `equals` and `is-not`."""
    minimum: float = 0.0
    maximum: float = 1.0
    """Of the favourable probability, for `bound`."""
    column: str | None = None
    """Of `invariant` (any other value leaves the answer) and `monotone` (a rise lowers no chance)."""
    step: float = 1.0


class IncidentCase(Spec):
    """One thing that went wrong and must not again."""

    version: Literal[1]
    id: str
    product: str = ""
    """Whose model it is about; empty: of every product."""
    title: str
    severity: Literal[1, 2, 3]
    origin: str
    """Where it came from: ticket, date, version."""
    expires: date
    """After it the case is listed and no longer judged; renew it or let it go."""
    input: dict[str, float | str]
    """Feature to number or category name."""
    relation: Relation
    neighbourhood: tuple[Change, ...] = Field(min_length=1)

    @property
    def digest(self) -> str:
        """`sha256:…` of what the case asks; its wording and how long it is kept do not count."""
        return digest_json(self.model_dump(mode="json", exclude={"title", "origin", "expires"}))


def load_cases(folder: Path) -> tuple[IncidentCase, ...]:
    """All cases of a project, by file name.

    Raises:
        ProjectError: A file is wrong.
    """
    return tuple(load_spec(path, IncidentCase) for path in sorted(folder.glob("*.yaml")))
