"""What the rule `decide` sees, and what it answers: frozen values without clock, database or Ray.

Units are thousandths of an accelerator, times microseconds.
Leaves to others: the rule (`decide`), where the state comes from (`admission` live, `simulate` from a trace).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlops.budgets.tree import BudgetTree
from mlops.clock import SECOND_US
from mlops.errors import Reason

Placement = tuple[tuple[str, int], ...]
"""Node and units on it, by node name."""


@dataclass(frozen=True)
class Node:
    """A machine (or an indivisible slice) with accelerators of one kind."""

    name: str
    kind: str
    units: int
    is_draining: bool = False
    """Nothing new starts here."""


@dataclass(frozen=True)
class Group:
    """A worker group that runs, waits, or was asked to leave: all of its units or none."""

    group_id: str
    budget: str
    kind: str
    units: int
    """Wanted; while it runs, what it has."""
    remaining_us: int
    """Predicted run time that is left with `units`."""
    submitted_us: int
    priority: int = 500
    minimum_units: int = 0
    """Elastic groups run with any multiple of `step_units` from here on; 0: rigid."""
    maximum_units: int = 0
    step_units: int = 0
    status: Literal["waiting", "running", "leaving"] = "waiting"
    placement: Placement = ()
    started_us: int = 0
    checkpointed_us: int = 0
    """Work up to here is not lost when it is stopped."""
    waited_us: int = 0
    """Before the current wait."""
    waiting_since_us: int = 0
    leaves_by_us: int = 0
    price_micro_usd_per_hour: int = 0
    prepaid_us: int = 0
    """What a start must pay ahead."""
    keeps_work: bool = False
    """Stopping loses nothing: it always reaches a checkpoint (a trace says so)."""
    evicted_by: frozenset[str] = frozenset()
    """Groups that it made room for and that still run: it may not evict them."""
    yields_to: str = ""
    """A group that was ahead when this one was started before it: it may take these units back."""
    yields_from_us: int = 0
    """From this time on."""
    is_serving: bool = False

    @property
    def smallest_units(self) -> int:
        """Fewest units it can run with."""
        return self.minimum_units or self.units


@dataclass(frozen=True)
class Settings:
    """Knobs of the rule; none of them depends on a trace."""

    minimum_run_us: int = 60 * SECOND_US
    """A group that started is left alone for this long."""
    leave_us: int = 0
    """Time from the order to leave to the units being free; 0: at once (simulation)."""
    restart_us: int = 30 * SECOND_US
    """What stopping and starting again costs, for weighing victims."""
    is_preempting_by_work: bool = True
    """Inside a priority class, much less remaining work may take the place of more."""
    gain: float = 1.0
    """By how many times a victim's remaining work must exceed that of the group that takes its place."""
    ageing_factor: float = 10.0
    ageing_floor_us: int = 3_600 * SECOND_US


@dataclass(frozen=True)
class State:
    """Everything the rule may look at."""

    tree: BudgetTree
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    money_left: Mapping[str, int] = field(default_factory=dict)
    """Micro-USD that a budget may still reserve; absent: no cap."""
    actions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Threshold actions in force per budget."""
    recent_use: Mapping[str, float] = field(default_factory=dict)
    """Decayed use per budget as a share of the cluster (fair sharing looks at the past, too)."""
    settings: Settings = Settings()


@dataclass(frozen=True)
class Start:
    """Begin (or resume) a group."""

    group_id: str
    placement: Placement
    is_backfill: bool = False
    yields_to: str = ""
    yields_from_us: int = 0


@dataclass(frozen=True)
class Preempt:
    """Ask a running group to checkpoint and leave, so that another can start."""

    group_id: str
    in_favour_of: str
    leaves_by_us: int
    reason: Reason


@dataclass(frozen=True)
class Resize:
    """Shrink or grow an elastic group."""

    group_id: str
    placement: Placement
    reason: Reason


@dataclass(frozen=True)
class Wait:
    """Not now, with the ground and, where it is known, the time at which asking again makes sense."""

    group_id: str
    reason: Reason
    until_us: int | None = None


@dataclass(frozen=True)
class Refuse:
    """Never, as things are configured."""

    group_id: str
    reason: Reason


Action = Start | Preempt | Resize | Wait | Refuse
