"""What one sees of sweeps: states, trials, metrics, and how the paid time was used; read from the ledger alone.

Leaves to others: printing (mlops/cli/sweep), MLflow's own pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from mlops.budgets.lease_types import SpendLimit
from mlops.budgets.money import cost_of
from mlops.budgets.sweep_spend import SweepSpend, load_spend
from mlops.clock import SECOND_US
from mlops.errors import TrainingError
from mlops.ledger.connection import Ledger
from mlops.training import sql_trials
from mlops.training.sql_trials import RUNNING, AttemptRow, GroupLeaseRow, SweepRow, TrialRow
from mlops.training.sweep import MEMBERS
from mlops.training.sweep_book import driven_by, is_driver_alive
from mlops.training.sweep_outlook import expect_end_us
from mlops.units import Accelerators

OPEN = (RUNNING, "WAITING")
"""States in which people see a trial that has not ended."""


@dataclass(frozen=True)
class TimeUse:
    """Accelerator-seconds of a sweep."""

    paid: float
    """Under leases, from grant to return."""
    busy: float
    """Inside trials."""
    data_wait: float
    """Of the busy ones: waiting for batches."""


@dataclass(frozen=True)
class TrialLine:
    """One trial as people see it."""

    number: int
    state: str
    """WAITING until its first attempt."""
    epoch: int
    """Epochs reported."""
    step: int
    """Steps of the epoch at hand, of a running one that said so: it is asked every other second."""
    attempts: int
    seconds: float
    params: dict[str, Any]
    metrics: dict[str, float]
    reason: str
    is_winner: bool
    cost_micro_usd: int
    """Of its time on worker groups, until now."""
    group: str
    lease_ids: tuple[str, ...]
    mlflow_run_id: str


@dataclass(frozen=True)
class SweepView:
    """One sweep as people see it."""

    sweep_id: str
    product: str
    state: str
    """`running`, `interrupted` (its driver died), `finished`, `stopped` or `failed`."""
    reason: str
    winner: int | None
    trains_members: bool
    """Its trials are members of an ensemble, which are joined: none of them wins."""
    seconds: float
    total: int
    """Trials it will have."""
    epochs: int
    fixed: dict[str, Any]
    """Parameters that all trials share."""
    objective: str
    is_minimized: bool
    time_use: TimeUse
    cost_micro_usd: int
    """Of all its leases until now, idle time and starts included."""
    budget: str
    left_micro_usd: int | None
    """What its budgets may still reserve for it; None where nothing has a cap."""
    ends_us: int | None
    """When its last trial is expected to have ended, of a running one with a report."""
    trials: tuple[TrialLine, ...]
    mlflow_run_id: str

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return sum(trial.state not in OPEN for trial in self.trials)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def load_sweep_row(ledger: Ledger, sweep_id: str) -> SweepRow:
    """A sweep by its id or a unique beginning of it.

    Raises:
        TrainingError: There is none, or several begin so.
    """
    with ledger.read() as connection:
        row = sql_trials.find_sweep(connection, sweep_id)
    if row is None:
        raise TrainingError(f"no sweep {sweep_id!r}, or several begin so", hint="`mlops sweep list` shows them")
    return row


def view_sweep(ledger: Ledger, sweep_id: str, *, now_us: int) -> SweepView:
    """One sweep with its trials.

    Raises:
        TrainingError: Unknown.
    """
    row = load_sweep_row(ledger, sweep_id)
    with ledger.read() as connection:
        trials = sql_trials.list_trials(connection, row.sweep_id)
        attempts = sql_trials.list_attempts(connection, row.sweep_id)
        reports = sql_trials.list_reports(connection, row.sweep_id)
        leases = sql_trials.list_group_leases(connection, row.sweep_id)
        spend = _load_spend(connection, row, now_us=now_us)
    epochs: dict[int, int] = {}
    for report in reports:
        epochs[report.number] = max(epochs.get(report.number, 0), report.epoch + 1)
    objective = row.spec["objective"]
    first = objective if isinstance(objective, dict) else objective[0]
    state = show_state(row, now_us=now_us)
    if state == "interrupted":
        begun_us = [lease.started_us for lease in leases] + [attempt.started_us for attempt in attempts]
        now_us = max([row.seen_us, *begun_us])  # nothing that is known of it has run since
    return SweepView(
        sweep_id=row.sweep_id,
        product=row.product,
        state=state,
        reason=row.reason,
        winner=None if MEMBERS in row.inputs else row.winner,
        trains_members=MEMBERS in row.inputs,
        seconds=((row.finished_us or now_us) - row.started_us) / SECOND_US,
        total=int(row.spec["trials"]),
        epochs=int(row.spec["epochs"]),
        fixed=dict(row.spec.get("fixed", {})),
        objective=first["metric"],
        is_minimized=first.get("direction", "minimize") == "minimize",
        time_use=sum_time(leases, attempts, now_us=now_us),
        cost_micro_usd=spend.spent_micro_usd,
        budget=row.spec["budget"],
        left_micro_usd=spend.left_micro_usd,
        ends_us=expect_end_us(row, trials, attempts, reports, now_us=now_us) if state == "running" else None,
        trials=_lines(trials, row, attempts, epochs=epochs, spend=spend, now_us=now_us),
        mlflow_run_id=row.mlflow_run_id,
    )


def list_views(ledger: Ledger, *, product: str | None, now_us: int) -> list[SweepView]:
    """All sweeps, newest first."""
    with ledger.read() as connection:
        rows = sql_trials.list_sweeps(connection, product=product)
    return [view_sweep(ledger, row.sweep_id, now_us=now_us) for row in rows]


def show_state(row: SweepRow, *, now_us: int) -> str:
    """The state, with `interrupted` for a sweep whose driver is dead."""
    if row.state == "running" and not is_driver_alive(row.driver, seen_us=row.seen_us, now_us=now_us):
        return "interrupted"
    return row.state


def require_undriven(ledger: Ledger, sweep_id: str, *, now_us: int) -> None:
    """Nobody drives a sweep now, or it does not exist yet.

    Raises:
        TrainingError: A driver that is alive has it.
    """
    with ledger.read() as connection:
        row = sql_trials.find_sweep(connection, sweep_id)
    if row is not None and show_state(row, now_us=now_us) == "running":
        raise driven_by(row)


def sum_time(leases: Sequence[GroupLeaseRow], attempts: Sequence[AttemptRow], *, now_us: int) -> TimeUse:
    """Accelerator-seconds paid, busy and waiting for data."""
    sizes = {lease.lease_id: Accelerators.parse(lease.accelerators).count for lease in leases}
    since: dict[str, int] = {}
    for attempt in attempts:
        if attempt.ended_us is None:  # a group has at most one that runs; what it was sent ahead waits behind that
            since[attempt.lease_id] = min(attempt.started_us, since.get(attempt.lease_id, attempt.started_us))
    running = sum((now_us - started_us) * sizes.get(lease_id, 0.0) for lease_id, started_us in since.items())
    return TimeUse(
        paid=sum(((lease.ended_us or now_us) - lease.started_us) * sizes[lease.lease_id] for lease in leases)
        / SECOND_US,
        busy=(sum(attempt.busy_us * sizes.get(attempt.lease_id, 0.0) for attempt in attempts) + running) / SECOND_US,
        data_wait=sum(attempt.data_wait_us * sizes.get(attempt.lease_id, 0.0) for attempt in attempts) / SECOND_US,
    )


def compare_sweeps(first: SweepView, second: SweepView) -> list[dict[str, Any]]:
    """What differs between two sweeps: state, winner's parameters and metrics, time."""
    rows: list[dict[str, Any]] = []

    def add(name: str, one: Any, other: Any) -> None:
        rows.append({"what": name, "first": one, "second": other, "is_equal": one == other})

    add("product", first.product, second.product)
    add("state", first.state, second.state)
    add("trials", len(first.trials), len(second.trials))
    winners = [next((trial for trial in view.trials if trial.is_winner), None) for view in (first, second)]
    params = [trial.params if trial else {} for trial in winners]
    metrics = [trial.metrics if trial else {} for trial in winners]
    add("winner", first.winner, second.winner)
    for name in sorted({*params[0], *params[1]}):
        add(f"param {name}", params[0].get(name), params[1].get(name))
    for name in sorted({*metrics[0], *metrics[1]}):
        add(f"metric {name}", metrics[0].get(name), metrics[1].get(name))
    add("paid accelerator-seconds", round(first.time_use.paid, 1), round(second.time_use.paid, 1))
    return rows


def _load_spend(connection: sa.Connection, row: SweepRow, *, now_us: int) -> SweepSpend:
    limit = row.spec.get("stop", {}).get("spend")  # micro-USD
    limits = () if limit is None else (SpendLimit(scope=f"sweep:{row.sweep_id}", cap_micro_usd=limit),)
    return load_spend(connection, row.sweep_id, budget=row.spec["budget"], limits=limits, now_us=now_us)


def _lines(
    trials: Sequence[TrialRow],
    sweep: SweepRow,
    attempts: Sequence[AttemptRow],
    *,
    epochs: Mapping[int, int],
    spend: SweepSpend,
    now_us: int,
) -> tuple[TrialLine, ...]:
    by_trial: dict[int, list[AttemptRow]] = {}
    for attempt in attempts:
        by_trial.setdefault(attempt.number, []).append(attempt)
    return tuple(
        _line(
            trial, sweep, by_trial.get(trial.number, []), epochs=epochs.get(trial.number, 0), spend=spend, now_us=now_us
        )
        for trial in trials
    )


def _line(
    trial: TrialRow, sweep: SweepRow, own: Sequence[AttemptRow], *, epochs: int, spend: SweepSpend, now_us: int
) -> TrialLine:
    is_inside = trial.state == RUNNING and bool(own) and own[-1].ended_us is None and own[-1].at_epoch == epochs
    durations = [max(0, (attempt.ended_us or now_us) - attempt.started_us) for attempt in own]
    costs = [
        cost_of(spend.prices.get(attempt.lease_id, 0), duration_us=duration_us)
        for attempt, duration_us in zip(own, durations, strict=True)
    ]
    return TrialLine(
        number=trial.number,
        state="WAITING" if trial.state == RUNNING and not own else trial.state,
        epoch=epochs,
        step=own[-1].at_step if is_inside else 0,
        attempts=len(own),
        seconds=sum(durations) / SECOND_US,
        params=trial.params,
        metrics=trial.metrics,
        reason=trial.reason,
        is_winner=sweep.winner == trial.number and MEMBERS not in sweep.inputs,
        cost_micro_usd=sum(costs),
        group=own[-1].worker_group if own else "",
        lease_ids=tuple(dict.fromkeys(attempt.lease_id for attempt in own)),
        mlflow_run_id=trial.mlflow_run_id,
    )


def require_search(row: SweepRow) -> None:
    """A sweep whose trials are points of a search, which can be gone on with, or run again, one by one.

    Raises:
        TrainingError: Its trials are members of an ensemble, which read slices of the data.
    """
    if MEMBERS in row.inputs:
        raise TrainingError(
            f"{row.sweep_id} trains the members of an ensemble by isolation, which read slices of the data",
            hint=f"`mlops sweep launch {row.product}` goes on with it: what is trained is not trained again",
        )


def wish_stop(ledger: Ledger, sweep_id: str) -> None:
    """Ask the driver of a running sweep to stop at the next step of each trial."""
    row = load_sweep_row(ledger, sweep_id)
    with ledger.write() as transaction:
        sql_trials.update(transaction.connection, sql_trials.sweeps, where={"sweep_id": row.sweep_id}, wish="stop")
        transaction.append("sweep.stop_wished", row.sweep_id, {})


def accept_changes(ledger: Ledger, sweep_id: str, *, inputs: Mapping[str, str], changed: Sequence[str]) -> None:
    """Keep that a sweep goes on with other inputs than it began with: its trials are no longer all comparable."""
    with ledger.write() as transaction:
        where = {"sweep_id": sweep_id}
        sql_trials.update(transaction.connection, sql_trials.sweeps, where=where, inputs=dict(inputs))
        transaction.append("sweep.inputs_changed", sweep_id, {"changed": list(changed), "inputs": dict(inputs)})
