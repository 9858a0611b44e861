"""Everything that matters on one screen, from the ledger and small files; nothing here imports a heavy library.

Leaves to others: showing it (status_text.py) and acting on it (each room).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from mlops.budgets.accounts import list_scopes, load_accounts
from mlops.budgets.configuration import load_applied
from mlops.clock import DAY_US, SECOND_US
from mlops.deploy.environment import list_environments
from mlops.deploy.proxy_haproxy import find_outage
from mlops.deploy.sql_deployments import load_deployments, load_desired
from mlops.errors import MlopsError
from mlops.overview.open_matters import ErasureDeadlines, OpenIncident, OpenMatters
from mlops.overview.waiting import WaitingLine, find_waiting
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.git_repository import open_repository
from mlops.provenance.sql_steps import StepRecord, find_newest_steps
from mlops.training.sql_trials import sweeps, trials

REBUILD = "rebuild"
"""Kind of the steps that `mlops rebuild --check` leaves."""


@dataclass(frozen=True)
class GateLine:
    """The last word of the gate on a product."""

    verdict: str
    at_us: int
    candidate: str
    undecided: tuple[str, ...]
    """Names of checks that could not be decided."""
    failed: tuple[str, ...] = ()
    """Names of checks that are not kept; of what was released they only advise."""


@dataclass(frozen=True)
class ProductLine:
    """One product."""

    name: str
    latest_number: int | None
    latest_us: int | None
    image: str | None
    gate: GateLine | None
    last_good_rebuild_us: int | None


@dataclass(frozen=True)
class ServingLine:
    """One version with traffic in one environment."""

    environment: str
    product: str
    number: int
    share: int
    """Percent."""
    since_us: int
    is_committed: bool
    """Whether git holds the decision that put it there."""
    outage: str = ""
    """Why nothing answers where this machine served; empty when something does."""


@dataclass(frozen=True)
class BudgetLine:
    """One budget in its current period."""

    name: str
    period: str
    cap_micro_usd: int | None
    charged_micro_usd: int
    reserved_micro_usd: int


@dataclass(frozen=True)
class SweepLine:
    """One sweep that runs."""

    sweep_id: str
    product: str
    started_us: int
    seen_us: int
    trials: dict[str, int]
    """State to how many."""


@dataclass(frozen=True)
class Status:
    """The whole screen."""

    now_us: int
    products: tuple[ProductLine, ...]
    environments: tuple[str, ...]
    serving: tuple[ServingLine, ...]
    budgets: tuple[BudgetLine, ...]
    sweeps: tuple[SweepLine, ...]
    waiting: tuple[WaitingLine, ...]
    dependencies_us: int | None
    """When `requirements.lock` was last changed."""
    incidents: tuple[OpenIncident, ...] = ()
    """Open ones, the gravest first."""
    erasures: tuple[ErasureDeadlines, ...] = ()
    """Open requests by dataset."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`, with days counted."""
        return {
            **asdict(self),
            "days_since_good_rebuild": {
                product.name: days_between(product.last_good_rebuild_us, self.now_us) for product in self.products
            },
            "dependencies_age_days": days_between(self.dependencies_us, self.now_us),
        }


def days_between(then_us: int | None, now_us: int) -> float | None:
    """Days, to one digit; None when it never happened."""
    return None if then_us is None else round((now_us - then_us) / DAY_US, 1)


def load_status(project: Project, matters: OpenMatters) -> Status:
    """Read the ledger once and a few small files.

    Args:
        project: Where.
        matters: What stands open in the rooms above.

    Raises:
        LedgerError: The ledger cannot be read.
        ProjectError: A project file has problems.
    """
    now_us = project.clock.now_us()
    environments = list_environments(project.places)
    with project.ledger.read() as connection:
        products = tuple(_load_product(connection, name) for name in project.places.products())
        serving = tuple(line for name in environments for line in _load_serving(connection, project.places, name))
        return Status(
            now_us=now_us,
            products=products,
            environments=environments,
            serving=serving,
            budgets=_load_budgets(connection, now_us=now_us),
            sweeps=_load_sweeps(connection),
            waiting=find_waiting(
                connection,
                project.places,
                latest={product.name: (product.latest_number, product.image) for product in products},
                serving={(line.environment, line.product): line.number for line in serving},
                now_us=now_us,
            ),
            dependencies_us=_find_lock_time(project.places),
            incidents=matters.incidents,
            erasures=matters.count_erasures(now_us),
        )


def _load_product(connection: sa.Connection, name: str) -> ProductLine:
    newest = find_newest_steps(connection, product=name)
    registration, gate, image = (newest.get(kind) for kind in ("registration", "gate", "image"))
    return ProductLine(
        name=name,
        latest_number=registration.facts.get("number") if registration else None,
        latest_us=registration.finished_us if registration else None,
        image=image.outputs.get("image") if image else None,
        gate=_read_gate(gate) if gate else None,
        last_good_rebuild_us=_find_good_rebuild(newest.get(REBUILD)),
    )


def _find_good_rebuild(step: StepRecord | None) -> int | None:
    """Only rebuilds that gave equal digests are recorded as steps."""
    return step.finished_us if step else None


def _read_gate(step: StepRecord) -> GateLine:
    checks = step.facts.get("checks") or {}
    named = checks.items() if isinstance(checks, dict) else ((check.get("name"), check) for check in checks)
    verdicts = {str(name): _verdict_of(check) for name, check in named}
    return GateLine(
        verdict=str(step.facts.get("verdict", "PASS")),
        at_us=step.finished_us,
        candidate=step.inputs.get("candidate", ""),
        undecided=tuple(name for name, verdict in verdicts.items() if verdict == "UNDECIDED"),
        failed=tuple(name for name, verdict in verdicts.items() if verdict == "FAIL"),
    )


def _verdict_of(check: Any) -> str:
    return str(check.get("verdict", "")) if isinstance(check, dict) else str(check)


def _load_serving(connection: sa.Connection, places: Places, environment: str) -> list[ServingLine]:
    desired = load_desired(connection, environment)
    is_committed = desired is None or desired.commit_hash is not None
    return [
        ServingLine(
            row.environment,
            row.product,
            row.number,
            row.share,
            row.since_us,
            is_committed,
            outage=find_outage(places.serving_state / environment / row.product),
        )
        for row in load_deployments(connection, environment=environment, is_current=True)
    ]


def _load_budgets(connection: sa.Connection, *, now_us: int) -> tuple[BudgetLine, ...]:
    nodes = load_applied(connection).nodes
    scopes = list_scopes(nodes, (), now_us=now_us)
    return tuple(
        BudgetLine(
            name=account.scope.removeprefix("budget:"),
            period=account.period,
            cap_micro_usd=account.cap_micro_usd,
            charged_micro_usd=account.charged_micro_usd,
            reserved_micro_usd=account.reserved_micro_usd,
        )
        for account in load_accounts(connection, scopes)
    )


def _load_sweeps(connection: sa.Connection) -> tuple[SweepLine, ...]:
    query = sa.select(sweeps.c.sweep_id, sweeps.c.product, sweeps.c.started_us, sweeps.c.seen_us)
    running = connection.execute(query.where(sweeps.c.state == "running").order_by(sweeps.c.started_us)).all()
    counts: dict[str, dict[str, int]] = {}
    query = sa.select(trials.c.sweep_id, trials.c.state, sa.func.count().label("many"))
    wanted = [row.sweep_id for row in running]
    for row in connection.execute(
        query.where(trials.c.sweep_id.in_(wanted)).group_by(trials.c.sweep_id, trials.c.state)
    ):
        counts.setdefault(row.sweep_id, {})[row.state] = row.many
    return tuple(SweepLine(*row, trials=counts.get(row.sweep_id, {})) for row in running)


def _find_lock_time(places: Places) -> int | None:
    """When the lock was last committed; its file time where it is not in git."""
    if not places.lock_file.is_file():
        return None
    try:
        seconds = open_repository(places.root).last_change_seconds(places.lock_file.relative_to(places.root).as_posix())
    except MlopsError:
        seconds = None
    return (seconds if seconds is not None else int(places.lock_file.stat().st_mtime)) * SECOND_US
