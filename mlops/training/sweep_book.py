"""The record of one sweep: every change is one ledger transaction with its event, then told to the mirror for people.

Writes are fenced: a driver that lost the sweep to another one, and an attempt that is no longer the trial's current
one, are refused. Leaves to others: what to do next (mlops/training/sweep_driver), the rows (mlops/training/sql_trials).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlops.clock import SECOND_US, Clock
from mlops.errors import TrainingError
from mlops.ledger.connection import Ledger, Transaction
from mlops.registry.mirror import DatasetReference, Mirror, Status
from mlops.training import sql_trials
from mlops.training.attempt import Ended, Progressed, Reported
from mlops.training.leasing import GroupLease
from mlops.training.spec import Value
from mlops.training.sql_trials import COMPLETE, FAILED, PRUNED, RUNNING, ReportRow, SweepRow, TrialRow

_SWEEP_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_TRIAL_STATUS: dict[str, Status] = {COMPLETE: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED"}
FOREIGN_DRIVER_SECONDS = 60.0
"""A driver on another machine that was not seen for so long is taken as dead."""


@dataclass(frozen=True)
class SweepFacts:
    """What a sweep is about, for the record and for people."""

    sweep_id: str
    product: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name to digest."""
    dataset: DatasetReference
    tags: Mapping[str, str]
    """`mlops.commit`, `mlops.lock` and the like."""


@dataclass
class SweepBook:
    """Writes of one driver."""

    facts: SweepFacts
    ledger: Ledger
    mirror: Mirror
    clock: Clock
    driver: str
    is_again: bool = False
    """This driver had the sweep before and lost the ledger: it may take it from itself."""
    run: str = ""
    """Handle of the sweep's run in the mirror."""
    started_us: int = 0
    """When the sweep first began, on the ledger's clock; known once the book is open."""
    runs: dict[int, str] = field(default_factory=dict)
    """Trial to handle; a trial has a run from its first attempt on."""
    _params: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _told: list[Callable[[], object]] = field(default_factory=list)
    """What people are shown once it is durable."""
    _shared: Transaction | None = None
    _stack: ExitStack | None = None

    @property
    def sweep_id(self) -> str:
        """The sweep."""
        return self.facts.sweep_id

    def open(self, *, is_present: Callable[[TrialRow], bool] = lambda trial: True) -> list[TrialRow]:
        """Begin the sweep or take it over; gives the trials that exist.

        Args:
            is_present: Whether a trial's weights still exist; a winner without is run again.

        Raises:
            TrainingError: Another driver that is alive has it.
        """
        with self.ledger.write() as transaction:
            row = sql_trials.find_sweep(transaction.connection, self.sweep_id)
            self.started_us = transaction.now_us if row is None else row.started_us
            if row is None:
                self._insert(transaction)
            else:
                is_own = self.is_again and row.driver == self.driver
                is_alive = is_driver_alive(row.driver, seen_us=row.seen_us, now_us=transaction.now_us)
                if row.state == "running" and is_alive and not is_own:
                    raise driven_by(row)
                self._update_sweep(
                    transaction, state="running", driver=self.driver, reason="", wish="", is_fenced=False
                )
                transaction.append("sweep.resumed", self.sweep_id, {"driver": self.driver})
                if row.winner is not None:
                    self._reopen(transaction, row.winner, is_present=is_present)
            trials = sql_trials.list_trials(transaction.connection, self.sweep_id)
            reports = sql_trials.list_reports(transaction.connection, self.sweep_id)
        self.run = self.mirror.start_sweep(
            f"sweep {self.facts.product}",
            key=self.sweep_id,
            tags={"mlops.sweep": self.sweep_id, "mlops.product": self.facts.product, **self.facts.tags},
            params=_flat(self.facts.spec),
            dataset=self.facts.dataset,
            product=self.facts.product,
        )
        self._params.update({trial.number: trial.params for trial in trials})
        self._show_again(trials, reports)
        return trials

    def _show_again(self, trials: list[TrialRow], reports: list[ReportRow]) -> None:
        """Whoever had the sweep before may have ended between recording and showing; what was shown stays once."""
        for report in reports:
            self.mirror.log_metrics(self.run_of(report.number), report.metrics, step=report.epoch, at_us=report.at_us)
        for trial in trials:
            if trial.state != RUNNING:
                self._end_run(trial.number, state=trial.state)

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that is written inside the block is one transaction: durable when the block has ended, or not at all.

        It begins with the first write, so a block that writes nothing costs nothing; inside, nobody else may write to
        the ledger from this thread.
        """
        with ExitStack() as stack:
            self._stack = stack
            try:
                yield
            finally:
                self._stack, self._shared = None, None
                told, self._told = self._told, []
        for tell in told:
            tell()

    def _tell(self, tell: Callable[[], object]) -> None:
        if self._stack is None:
            tell()
        else:
            self._told.append(tell)

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        if self._stack is None:
            with self.ledger.write() as transaction:
                self._require_mine(transaction)
                yield transaction
            return
        if self._shared is None:
            self._shared = self._stack.enter_context(self.ledger.write())
            self._require_mine(self._shared)
        yield self._shared

    def begin_trial(self, number: int, *, params: Mapping[str, Value], seed: int) -> None:
        """A new trial exists; its first attempt follows."""
        with self._write() as transaction:
            sql_trials.insert(
                transaction.connection,
                sql_trials.trials,
                sweep_id=self.sweep_id,
                number=number,
                state=RUNNING,
                params=dict(params),
                seed=seed,
                metrics={},
                weights_file="",
                weights_sha256="",
                mlflow_run_id="",
                reason="",
                started_us=transaction.now_us,
                finished_us=None,
            )
            transaction.append("trial.proposed", self.trial_id(number), {"params": dict(params), "seed": seed})
        self._params[number] = params

    def last_attempt(self, number: int) -> int:
        """Number of a trial's last attempt; -1 when it had none."""
        with self.ledger.read() as connection:
            return max(
                (row.attempt for row in sql_trials.list_attempts(connection, self.sweep_id, number=number)), default=-1
            )

    def begin_attempt(self, number: int, *, attempt: int, group: str, lease: GroupLease) -> None:
        """An attempt starts on a group; earlier attempts of the trial lose their right to write."""
        with self._write() as transaction:
            sql_trials.insert(
                transaction.connection,
                sql_trials.attempts,
                sweep_id=self.sweep_id,
                number=number,
                attempt=attempt,
                worker_group=group,
                lease_id=lease.lease.lease_id,
                fencing_token=lease.lease.fencing_token,
                started_us=transaction.now_us,
                ended_us=None,
                outcome="",
                reason="",
                busy_us=0,
                data_wait_us=0,
            )
            body = {"attempt": attempt, "group": group, "lease": lease.lease.lease_id}
            transaction.append("trial.started", self.trial_id(number), body)
        tags = {"mlops.lease": lease.lease.lease_id, "mlops.attempt": str(attempt), "mlops.group": group}
        self._tell(lambda: self.mirror.set_tags(self.run_of(number), tags))

    def move_start(self, number: int, *, attempt: int) -> None:
        """An attempt that was given to a group ahead of time has begun just now."""
        with self._write() as transaction:
            where = {"sweep_id": self.sweep_id, "number": number, "attempt": attempt}
            sql_trials.update(transaction.connection, sql_trials.attempts, where=where, started_us=transaction.now_us)

    def add_report(self, report: Reported) -> bool:
        """Keep the metrics of an epoch; False when they come from an attempt that is no longer the current one."""
        key = {"sweep_id": self.sweep_id, "number": report.trial}
        with self._write() as transaction:
            if not self._is_current(transaction, number=report.trial, attempt=report.attempt):
                return False
            connection, metrics = transaction.connection, dict(report.metrics)
            row = {"attempt": report.attempt, "metrics": metrics, "at_us": transaction.now_us}
            if not sql_trials.update(connection, sql_trials.reports, where={**key, "epoch": report.epoch}, **row):
                sql_trials.insert(connection, sql_trials.reports, **key, epoch=report.epoch, **row)
            sql_trials.update(connection, sql_trials.trials, where=key, metrics=metrics)
            at_us = transaction.now_us
        shown = {**report.metrics, **report.system}
        self._tell(lambda: self.mirror.log_metrics(self.run_of(report.trial), shown, step=report.epoch, at_us=at_us))
        return True

    def end_attempt(self, ended: Ended, *, final_state: str | None) -> bool:
        """An attempt ended, and with `final_state` its trial too; False when it was fenced off."""
        with self._write() as transaction:
            if not self._is_current(transaction, number=ended.trial, attempt=ended.attempt):
                return False
            connection = transaction.connection
            sql_trials.update(
                connection,
                sql_trials.attempts,
                where={"sweep_id": self.sweep_id, "number": ended.trial, "attempt": ended.attempt},
                ended_us=transaction.now_us,
                outcome=ended.outcome,
                reason=ended.reason,
                busy_us=ended.usage.busy_us,
                data_wait_us=ended.usage.data_wait_us,
            )
            if final_state is not None:
                sql_trials.update(
                    connection,
                    sql_trials.trials,
                    where={"sweep_id": self.sweep_id, "number": ended.trial},
                    state=final_state,
                    weights_file=ended.weights_file,
                    weights_sha256=ended.weights_sha256,
                    reason=ended.reason,
                    finished_us=transaction.now_us,
                )
            body = {"attempt": ended.attempt, "outcome": ended.outcome, "reason": ended.reason}
            kind = "trial.finished" if final_state is not None else "attempt.ended"
            transaction.append(kind, self.trial_id(ended.trial), {**body, "weights": ended.weights_sha256})
        if final_state is not None:
            tags = {"mlops.outcome": ended.outcome, **({"mlops.reason": ended.reason} if ended.reason else {})}
            self._tell(lambda: self.mirror.set_tags(self.run_of(ended.trial), tags))
            self._tell(lambda: self._end_run(ended.trial, state=final_state))
        return True

    def drop_trial(self, number: int, *, reason: str) -> None:
        """A trial is not gone on with: the sweep ends before it."""
        with self._write() as transaction:
            where = {"sweep_id": self.sweep_id, "number": number}
            changes = {"state": PRUNED, "reason": reason, "finished_us": transaction.now_us}
            sql_trials.update(transaction.connection, sql_trials.trials, where=where, **changes)
            transaction.append("trial.finished", self.trial_id(number), {"outcome": "dropped", "reason": reason})
        self._tell(lambda: self._end_run(number, state=PRUNED))

    def age_us(self) -> int:
        """Since the sweep first began, whichever driver had it; on the ledger's clock."""
        return self.clock.now_us() - self.started_us

    def add_lease(self, group: str, lease: GroupLease) -> None:
        """A group holds a lease."""
        with self._write() as transaction:
            sql_trials.insert(
                transaction.connection,
                sql_trials.group_leases,
                sweep_id=self.sweep_id,
                lease_id=lease.lease.lease_id,
                worker_group=group,
                fencing_token=lease.lease.fencing_token,
                accelerators=str(lease.accelerators),
                started_us=transaction.now_us,
                ended_us=None,
            )

    def end_lease(self, lease_id: str, *, paid_until_us: int | None = None) -> int:
        """A group gave its lease back, or was paid no longer; the time of that."""
        with self.ledger.write() as transaction:
            key = {"sweep_id": self.sweep_id, "lease_id": lease_id}
            ended_us = min(transaction.now_us, paid_until_us or transaction.now_us)
            sql_trials.update(transaction.connection, sql_trials.group_leases, where=key, ended_us=ended_us)
            return ended_us

    def end_lost_attempts(self, *, paid_until_us: Mapping[str, int]) -> None:
        """Attempts that a driver left open when it died end now, or when their lease did."""
        with self.ledger.write() as transaction:
            for row in sql_trials.list_attempts(transaction.connection, self.sweep_id):
                if row.ended_us is not None:
                    continue
                sql_trials.update(
                    transaction.connection,
                    sql_trials.attempts,
                    where={"sweep_id": self.sweep_id, "number": row.number, "attempt": row.attempt},
                    ended_us=min(transaction.now_us, paid_until_us.get(row.lease_id, transaction.now_us)),
                    outcome="lost",
                    reason="its driver ended",
                )

    def heartbeat(self, heard: Iterable[Progressed] = ()) -> str:
        """Say that this driver lives, and how far trials are; gives what others wish (`stop`), or nothing."""
        with self._write() as transaction:
            self._update_sweep(transaction)
            for it in heard:
                where = {"sweep_id": self.sweep_id, "number": it.trial, "ended_us": None}
                at = {"at_epoch": it.epoch, "at_step": it.steps}
                sql_trials.update(transaction.connection, sql_trials.attempts, where=where, **at)
            found = sql_trials.find_driver(transaction.connection, self.sweep_id)
            return found[1] if found else ""

    def close(self, *, state: str, reason: str, winner: int | None) -> None:
        """The sweep ended: `finished`, `stopped` or `failed`."""
        with self._write() as transaction:
            self._update_sweep(transaction, state=state, reason=reason, winner=winner, finished_us=transaction.now_us)
            transaction.append("sweep.ended", self.sweep_id, {"state": state, "reason": reason, "winner": winner})
        if winner is not None:
            self.mirror.set_tags(self.run, {"mlops.winner": str(winner)})
            self.mirror.set_tags(self.run_of(winner), {"mlops.is_winner": "true"})
            self._end_run(winner, state=COMPLETE)
        self.mirror.end(self.run, _SWEEP_STATUS[state])

    def keep_run_ids(self) -> None:
        """Write MLflow's own run ids into the ledger, as far as MLflow answers in time."""
        self.mirror.flush()
        found = {
            number: self.mirror.find_mlflow_run(handle, timeout_seconds=1.0) for number, handle in self.runs.items()
        }
        parent = self.mirror.find_mlflow_run(self.run, timeout_seconds=1.0)
        with self.ledger.write() as transaction:
            if parent is not None:
                self._update_sweep(transaction, mlflow_run_id=parent)
            for number, run_id in found.items():
                where = {"sweep_id": self.sweep_id, "number": number}
                if run_id is not None:
                    sql_trials.update(transaction.connection, sql_trials.trials, where=where, mlflow_run_id=run_id)

    def run_of(self, number: int) -> str:
        """Handle of a trial's run, begun when first needed."""
        if number not in self.runs:
            self.runs[number] = self.mirror.start_trial(
                self.run,
                key=self.trial_id(number),
                name=f"trial {number}",
                params=self._params[number],
                tags={"mlops.trial": str(number)},
            )
        return self.runs[number]

    def trial_id(self, number: int) -> str:
        """Subject of a trial's events."""
        return f"{self.sweep_id}/{number}"

    def trial_folder(self, checkpoints: Path, number: int) -> Path:
        """Where a trial's checkpoints and weights lie."""
        return checkpoints / self.sweep_id / f"{number:05d}"

    def _insert(self, transaction: Transaction) -> None:
        sql_trials.insert(
            transaction.connection,
            sql_trials.sweeps,
            sweep_id=self.sweep_id,
            product=self.facts.product,
            state="running",
            spec=dict(self.facts.spec),
            inputs=dict(self.facts.inputs),
            driver=self.driver,
            started_us=transaction.now_us,
            seen_us=transaction.now_us,
            finished_us=None,
            winner=None,
            reason="",
            mlflow_run_id="",
            wish="",
        )
        transaction.append("sweep.started", self.sweep_id, {"product": self.facts.product, "driver": self.driver})

    def _reopen(self, transaction: Transaction, number: int, *, is_present: Callable[[TrialRow], bool]) -> None:
        connection = transaction.connection
        for trial in sql_trials.list_trials(connection, self.sweep_id):
            if trial.number == number and not is_present(trial):
                where = {"sweep_id": self.sweep_id, "number": number}
                sql_trials.update(connection, sql_trials.trials, where=where, state=RUNNING, finished_us=None)
                transaction.append("trial.reopened", self.trial_id(number), {"missing": trial.weights_sha256})

    def _update_sweep(self, transaction: Transaction, *, is_fenced: bool = True, **values: Any) -> None:
        where = {"sweep_id": self.sweep_id, **({"driver": self.driver} if is_fenced else {})}
        sql_trials.update(transaction.connection, sql_trials.sweeps, where=where, seen_us=transaction.now_us, **values)

    def _require_mine(self, transaction: Transaction) -> None:
        found = sql_trials.find_driver(transaction.connection, self.sweep_id)
        if found is None or found[0] != self.driver:
            raise TrainingError(
                f"sweep {self.sweep_id} was taken over by {found[0] if found else 'nobody'}: this driver stops"
            )

    def _is_current(self, transaction: Transaction, *, number: int, attempt: int) -> bool:
        of_trial = sql_trials.list_attempts(transaction.connection, self.sweep_id, number=number)
        return bool(of_trial) and of_trial[-1].attempt == attempt and of_trial[-1].ended_us is None

    def _end_run(self, number: int, *, state: str) -> None:
        self.mirror.end(self.run_of(number), _TRIAL_STATUS[state])


def this_driver() -> str:
    """`host:pid:start time` of this process."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{os.getpid()}:{int(process.create_time() * 1000)}"


def driven_by(row: SweepRow) -> TrainingError:
    """What is said to whoever wants to drive a sweep too."""
    name = row.sweep_id
    hint = f"watch it with `mlops sweep show {name} --follow`, or stop it with `mlops sweep stop {name}`"
    return TrainingError(f"{name} is being driven by {row.driver}", hint=hint)


def is_driver_alive(driver: str, *, seen_us: int, now_us: int) -> bool:
    """Whether the process lives (on this machine), or was seen lately (on another one)."""
    host, _, rest = driver.rpartition(":")[0].rpartition(":")
    started = driver.rpartition(":")[2]
    if host != socket.gethostname() or not rest.isdigit():
        return now_us - seen_us < FOREIGN_DRIVER_SECONDS * SECOND_US
    try:
        process = psutil.Process(int(rest))
        return process.status() != psutil.STATUS_ZOMBIE and str(int(process.create_time() * 1000)) == started
    except psutil.NoSuchProcess:
        return False


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat
