"""Running a sweep from its spec to its winner: the entry that the release and the command line call.

A sweep's id follows from its inputs, so the same inputs name the same sweep: an unfinished one is gone on with, a
finished one is read back.
Leaves to others: the loop (sweep_driver), the record (sweep_book), memoising the step (mlops/provenance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlops.budgets.lease_rows import LeaseRow, list_of_sweep
from mlops.clock import Clock
from mlops.errors import EnvironmentFault, ProjectError, Reason, Refusal, TrainingError
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.provenance.digest import digest_json, hex_of
from mlops.registry.mirror import DatasetReference, Mirror
from mlops.training import sql_trials
from mlops.training.attempt import Crew
from mlops.training.leasing import GroupLeases, Leases, settle_group
from mlops.training.ledger_loss import outlast
from mlops.training.optuna_search import fit_earlier
from mlops.training.spec import SweepSpec, verify_parameters
from mlops.training.sql_trials import FAILED, TrialRow
from mlops.training.sweep_book import SweepBook, SweepFacts, this_driver
from mlops.training.sweep_driver import STOPPED_BY_REQUEST, SweepDriver
from mlops.training.sweep_state import DriverTask, MemberTask
from mlops.training.winner import choose_winner

MEMBERS = "members"
"""Name of the input that says which members of an ensemble a sweep trains; a search has none."""
NAMING_INPUTS = ("trainer", "spec", "lock", "manifest", "code", MEMBERS)
"""The inputs that the weights depend on; budgets and source reports do not rename a sweep."""


@dataclass(frozen=True)
class SweepRequest:
    """What is swept, and everything its outcome depends on."""

    spec: SweepSpec
    trainer_file: Path
    inputs: Mapping[str, str]
    """Name to digest: trainer, spec, lock, manifest, code, …; see `NAMING_INPUTS`."""
    reserved: Mapping[str, Any]
    """The reserved parameters: `columns` and `classes`."""
    dataset: DatasetReference
    checkpoints: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    """For MLflow: `mlops.commit` and the like."""
    spender: str = ""
    """The person in whose name the budget is used."""
    resumed_id: str = ""
    """Of a sweep that goes on although its inputs changed, because somebody asked for that."""

    @property
    def sweep_id(self) -> str:
        """`sweep-<16 hex digits>` of the naming inputs, or of the sweep that goes on."""
        if self.resumed_id:
            return self.resumed_id
        named = {name: self.inputs[name] for name in NAMING_INPUTS if name in self.inputs}
        return f"sweep-{hex_of(digest_json(named))[:16]}"


def find_changes(request: SweepRequest, inputs: Mapping[str, str]) -> tuple[str, ...]:
    """Naming inputs that are no longer what they were when a sweep began with `inputs`."""
    return tuple(name for name in NAMING_INPUTS if request.inputs.get(name) != inputs.get(name))


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended."""

    number: int
    state: str
    params: dict[str, Any]
    """Without the reserved ones."""
    metrics: dict[str, float]
    """Of its last report, on validation data."""
    seed: int
    weights_file: Path | None
    weights_sha256: str
    mlflow_run_id: str
    lease_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Ensemble:
    """The members of an ensemble, all trained."""

    members: int
    sweep_id: str
    """Of the sweep in which members were trained now; empty when all were there."""
    trained: tuple[TrialResult, ...]
    """Members that were trained now, in whole or from their last clean slice; the others were there."""
    weights_file: Path
    """Of all members, as the exported module names them."""
    weights_sha256: str


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that ended with a winner."""

    sweep_id: str
    winner: TrialResult
    trials: tuple[TrialResult, ...]
    mlflow_run_id: str
    stopped: str
    """Why it ended before its last trial, or empty."""
    ensemble: Ensemble | None = None
    """With `isolation` in the spec: the winner trained as isolated members; this, not the winner, is exported."""


@dataclass(frozen=True)
class SweepGround:
    """What the sweeps of a process stand on."""

    ledger: Ledger
    """Keeps every trial and report."""
    clock: Clock
    ids: Ids
    leases: GroupLeases
    """Where groups pay before they start."""
    mirror: Mirror
    """Shows sweeps to people."""
    open_crew: Callable[[], Crew | Refusal]
    """Makes the worker groups' crew, or says why there is none; called only when a trial is to be run."""
    say: Callable[[str], None]
    """Prints one line of progress."""


def run_sweep(request: SweepRequest, ground: SweepGround) -> SweepOutcome | Refusal:
    """Run, go on with, or read back a sweep.

    Args:
        request: What is swept.
        ground: What it stands on; a ledger that is lost for a while is waited for.

    Returns:
        The outcome; or a refusal: the budget does not allow it, it was stopped, or no trial satisfies the constraints.

    Raises:
        ProjectError: Spec and trainer name different parameters.
        TrainingError: Every trial failed, or another driver has the sweep.
    """
    trainer = verify_parameters(request.spec, trainer_file=request.trainer_file)

    def attempt(is_again: bool) -> SweepOutcome | Refusal:
        book = open_book(request, ground, is_again=is_again)
        found = _read_finished(book, request.spec)
        if found is not None:
            ground.say(f"{request.sweep_id} is finished already: nothing to train")
            return found
        earlier = load_earlier(ground.ledger, request.spec)
        task = replace(make_task(request, book, trainer_digest=trainer.digest), earlier=earlier)
        return _conclude(book, request.spec, ended=drive(request.spec, task, book, ground))

    return outlast(attempt, ledger=ground.ledger, clock=ground.clock, say=ground.say)


def load_earlier(ledger: Ledger, spec: SweepSpec) -> tuple[TrialRow, ...]:
    """The trials of the sweeps that `warm_start` names.

    Raises:
        ProjectError: A sweep is unknown, still runs, or none of its trials fits the space.
    """
    found: list[TrialRow] = []
    problems = []
    for sweep_id in spec.warm_start:
        with ledger.read() as connection:
            row = sql_trials.find_sweep(connection, sweep_id)
            trials = sql_trials.list_trials(connection, row.sweep_id) if row is not None else []
        if row is None:
            problems.append(f"warm_start: there is no sweep {sweep_id!r}")
        elif row.finished_us is None:
            problems.append(f"warm_start: {row.sweep_id} has not ended; its results would depend on the hour")
        elif not fit_earlier(spec, trials):
            problems.append(f"warm_start: no complete trial of {row.sweep_id} is a point of this space")
        found += trials
    if problems:
        hint = (
            "`mlops sweep list` shows them; space, `fixed` and objective must be those of the earlier sweep, or wider"
        )
        raise ProjectError(f"the sweep of {spec.product} cannot start warm", items=tuple(problems), hint=hint)
    return tuple(found)


def open_book(request: SweepRequest, ground: SweepGround, *, is_again: bool = False) -> SweepBook:
    """The record of a sweep, in the name of this process; `is_again` when it lost the ledger in the middle."""
    facts = SweepFacts(
        sweep_id=request.sweep_id,
        product=request.spec.product,
        spec=request.spec.to_json(),
        inputs=request.inputs,
        dataset=request.dataset,
        tags=request.tags,
    )
    ledger, mirror, clock = ground.ledger, ground.mirror, ground.clock
    return SweepBook(facts, ledger=ledger, mirror=mirror, clock=clock, driver=this_driver(), is_again=is_again)


def make_task(
    request: SweepRequest,
    book: SweepBook,
    *,
    trainer_digest: str,
    members: Mapping[int, MemberTask] | None = None,
) -> DriverTask:
    """What every attempt of the sweep shares."""
    return DriverTask(
        trainer_file=request.trainer_file,
        trainer_digest=trainer_digest,
        reserved=request.reserved,
        checkpoints=request.checkpoints,
        holder=book.driver,
        spender=request.spender,
        members=members or {},
    )


def drive(spec: SweepSpec, task: DriverTask, book: SweepBook, ground: SweepGround) -> Refusal | str:
    """Open the book, run or go on with its trials to the end, and close the crew; see `SweepDriver.run`.

    Raises:
        TrainingError: Another driver has the sweep.
    """
    past = book.open(is_present=lambda trial: Path(trial.weights_file).is_file())
    leases = ground.leases
    left_over = settle_left_over(book, leases)
    try:
        crew = ground.open_crew()
    except EnvironmentFault as error:  # no cluster, or one that is too small: it is not running, and may be resumed
        book.close(state="stopped", reason=error.message, winner=None)
        raise
    if isinstance(crew, Refusal):
        return crew
    try:
        crew.end_left_over(left_over)
        driver = SweepDriver(
            spec, task=task, book=book, crew=crew, leases=leases, clock=book.clock, ids=ground.ids, say=ground.say
        )
        with book.ledger.read() as connection:
            reports = sql_trials.list_reports(connection, book.sweep_id)
        return driver.run(past=past, reports=reports)
    finally:
        crew.close()


def settle_left_over(book: SweepBook, leases: Leases) -> tuple[str, ...]:
    """Give back the leases of a driver that died; gives its groups, whose workers may still wait for it."""
    with book.ledger.read() as connection:
        rows = sql_trials.list_group_leases(connection, book.sweep_id)
        paid_until = {lease.lease_id: lease.expires_us for lease in list_of_sweep(connection, book.sweep_id)}
    book.end_lost_attempts(paid_until_us=paid_until)
    for row in rows:
        if row.ended_us is None:
            ended_us = book.end_lease(row.lease_id, paid_until_us=paid_until.get(row.lease_id))
            settle_group(leases, row.lease_id, fencing_token=row.fencing_token, ended_us=ended_us)
    for lease in _list_unrecorded(book):
        settle_group(leases, lease.lease_id, fencing_token=lease.fencing_token, ended_us=book.clock.now_us())
    return tuple(row.worker_group for row in rows if row.ended_us is None)


def _list_unrecorded(book: SweepBook) -> list[LeaseRow]:
    """Live leases that no group has: the ledger was lost, or the driver died, between paying and recording it.

    What lies on the shelf is paid on purpose, and so are the machines of a cluster of the sweep's own.
    """
    if book.facts.spec["cluster"] == "ephemeral":
        return []
    with book.ledger.read() as connection:
        kept = set(connection.scalars(sa.select(sql_trials.warm_groups.c.lease_id)))
        found = list_of_sweep(connection, book.sweep_id)
    return [lease for lease in found if lease.is_live and lease.lease_id not in kept]


def load_trials(ledger: Ledger, sweep_id: str) -> tuple[TrialResult, ...]:
    """All trials of a sweep from the ledger."""
    with ledger.read() as connection:
        rows = sql_trials.list_trials(connection, sweep_id)
        attempts = sql_trials.list_attempts(connection, sweep_id)
    leases: dict[int, list[str]] = {}
    for attempt in attempts:
        leases.setdefault(attempt.number, []).append(attempt.lease_id)
    return tuple(_result(row, lease_ids=tuple(dict.fromkeys(leases.get(row.number, [])))) for row in rows)


def _conclude(book: SweepBook, spec: SweepSpec, *, ended: Refusal | str) -> SweepOutcome | Refusal:
    if isinstance(ended, Refusal):
        book.close(state="stopped", reason=ended.render_text(), winner=None)
        return ended
    trials = load_trials(book.ledger, book.sweep_id)
    if trials and all(trial.state == FAILED for trial in trials):
        reasons = tuple(f"trial {trial.number}: {trial.reason}" for trial in trials)
        book.close(state="failed", reason="every trial failed", winner=None)
        raise TrainingError(
            f"every trial of {book.sweep_id} failed",
            items=reasons[:5],
            hint=f"try one by hand: `mlops trainer run {spec.product} --local`",
        )
    if ended == STOPPED_BY_REQUEST:
        book.close(state="stopped", reason=ended, winner=None)
        return Refusal((Reason("stopped", f"{book.sweep_id} was stopped; go on with `mlops sweep resume`"),))
    with book.ledger.read() as connection:
        winner = choose_winner(spec, sql_trials.list_trials(connection, book.sweep_id))
    if isinstance(winner, Refusal):
        book.close(state="failed", reason=winner.render_text(), winner=None)
        return winner
    book.close(state="finished", reason=ended, winner=winner.number)
    book.keep_run_ids()
    outcome = _read_finished(book, spec)
    assert outcome is not None
    return outcome


def _read_finished(book: SweepBook, spec: SweepSpec) -> SweepOutcome | None:
    with book.ledger.read() as connection:
        row = sql_trials.find_sweep(connection, book.sweep_id)
    if row is None or row.state != "finished" or row.winner is None:
        return None
    trials = load_trials(book.ledger, book.sweep_id)
    winner = trials[row.winner]
    if winner.weights_file is None or not winner.weights_file.is_file():
        return None  # the weights were removed: `SweepBook.open` has the winner trained again
    return SweepOutcome(book.sweep_id, winner, trials, mlflow_run_id=row.mlflow_run_id, stopped=row.reason)


def _result(row: TrialRow, *, lease_ids: tuple[str, ...]) -> TrialResult:
    return TrialResult(
        number=row.number,
        state=row.state,
        params=row.params,
        metrics=row.metrics,
        seed=row.seed,
        weights_file=Path(row.weights_file) if row.weights_file else None,
        weights_sha256=row.weights_sha256,
        mlflow_run_id=row.mlflow_run_id,
        lease_ids=lease_ids,
        reason=row.reason,
    )
