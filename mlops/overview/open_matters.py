"""What stands open in the rooms above, as values: incidents, and people's requests without any name.

The overview lies below those rooms, so the command line reads them and hands them down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops.clock import DAY_US


@dataclass(frozen=True)
class OpenIncident:
    """One incident that is not closed."""

    incident_id: str
    product: str
    severity: int
    """1 is worst."""
    title: str
    opened_us: int


def count_days_left(deadline_us: int, *, now_us: int) -> float:
    """To one digit; what is late by an hour is late by 0.1 of a day, not by -0.0 of one."""
    days = round((deadline_us - now_us) / DAY_US, 1)
    return -0.1 if deadline_us < now_us and days == 0 else days


@dataclass(frozen=True)
class OpenErasure:
    """One request that still has to be answered."""

    dataset: str
    state: str
    """`received`, `identity-hold`, `legal-hold`, `fenced`, `batched`."""
    deadline_us: int

    def days_left(self, now_us: int) -> float:
        """Days until the deadline, to one digit; below zero when it has passed."""
        return count_days_left(self.deadline_us, now_us=now_us)


@dataclass(frozen=True)
class ErasureDeadlines:
    """Open requests of one dataset, counted."""

    dataset: str
    states: Mapping[str, int]
    days_left: tuple[float, ...]
    """Of each request, the most urgent first."""

    @property
    def overdue(self) -> int:
        """How many deadlines have passed."""
        return sum(days < 0 for days in self.days_left)


@dataclass(frozen=True)
class OpenMatters:
    """Everything that stands open above."""

    incidents: tuple[OpenIncident, ...] = ()
    erasures: tuple[OpenErasure, ...] = ()

    def count_erasures(self, now_us: int) -> tuple[ErasureDeadlines, ...]:
        """Requests by dataset."""
        found: dict[str, list[OpenErasure]] = {}
        for request in sorted(self.erasures, key=lambda each: each.deadline_us):
            found.setdefault(request.dataset, []).append(request)
        return tuple(
            ErasureDeadlines(
                dataset,
                {state: sum(each.state == state for each in requests) for state in sorted({r.state for r in requests})},
                tuple(each.days_left(now_us) for each in requests),
            )
            for dataset, requests in sorted(found.items())
        )
