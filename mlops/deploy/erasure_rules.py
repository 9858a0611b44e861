"""The rules of erasure, `deploy/erasure.yaml`: deadline, window, budget, whom to tell, which tenants may ask.

A project without the file has the defaults. Leaves to others: what happens at the deadline in an environment
(environment.py) and what is decided by these rules (mlops/erasure).
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mlops.clock import SECOND_US
from mlops.errors import ProvenanceError
from mlops.places import Places
from mlops.provenance.ed25519 import parse_public_key
from mlops.specs import Spec, load_spec
from mlops.units import Duration

OWN_BUDGET = "erasure"
"""Budget that pays for retrains when there is one of that name and the rules name no other."""


class TenantSpec(Spec):
    """Somebody who sends requests to `mlops erasure serve`."""

    keys: tuple[str, ...] = Field(min_length=1)
    """Public keys, `ed25519:…`; each request is signed by one of them."""
    datasets: tuple[str, ...] = ()
    """Which ones it may ask about; empty means all."""
    per_minute: int = Field(default=60, ge=1)
    """Requests beyond this are told when to come again; none is dropped silently."""
    vouches_for_identity: bool = True
    """False: its requests wait in `identity-hold` until a person verifies them."""

    @field_validator("keys")
    @classmethod
    def _are_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            try:
                parse_public_key(key)
            except ProvenanceError as error:
                raise ValueError(error.message) from error
        return value


class ErasureSpec(Spec):
    """The whole file."""

    version: Literal[1]
    deadline: Duration | None = Field(default=None, gt=0)
    """Seconds from receipt; the default is one calendar month, as GDPR art. 12(3) counts."""
    window: Duration = 86_400.0
    """At most one retrain of a dataset's products starts in so many seconds."""
    reserve: Duration = 3 * 86_400.0
    """A request whose deadline is nearer than this does not wait for the window."""
    act_before: Duration = 7_200.0
    """A run so near to a deadline takes it for come: another run may not be in time."""
    budget: str | None = None
    """Pays for retrains; default: the budget `erasure` if there is one, else the one of the sweep."""
    tell: tuple[str, ...] = ()
    """A command that gets what people must know as JSON on its standard input; besides the log."""
    tenants: dict[str, TenantSpec] = Field(default_factory=dict)

    def deadline_us(self, received_us: int) -> int:
        """When a request must be answered."""
        if self.deadline is not None:
            return received_us + round(self.deadline * SECOND_US)
        return add_month_us(received_us)


def add_month_us(start_us: int) -> int:
    """The same time a calendar month later; the last day of a shorter month."""
    start = datetime.fromtimestamp(start_us // SECOND_US, tz=UTC)
    year, month = (start.year + 1, 1) if start.month == 12 else (start.year, start.month + 1)
    day = min(start.day, calendar.monthrange(year, month)[1])
    end = start.replace(year=year, month=month, day=day)
    return start_us + (end - start) // timedelta(microseconds=1)


def rules_file(places: Places) -> Path:
    """Where the rules stand."""
    return places.root / "deploy" / "erasure.yaml"


def load_rules(places: Places) -> ErasureSpec:
    """The project's rules, or the defaults.

    Raises:
        ProjectError: The file has problems (all named).
    """
    path = rules_file(places)
    return load_spec(path, ErasureSpec) if path.exists() else ErasureSpec(version=1)
