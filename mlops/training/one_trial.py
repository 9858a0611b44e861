"""One trial run again on a worker group of its own: same parameters, same seed, same number of workers.

No search, no pruning, nothing in MLflow; the lease is paid like any other.
Leaves to others: what the weights are compared with (mlops/overview/rebuild), worker groups (`Crew`), money (`Leases`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.clock import Clock
from mlops.errors import Refusal, TrainingError
from mlops.provenance.digest import digest_file
from mlops.training.attempt import Answer, AttemptTask, Crew, Ended, Event, Gone, GroupShape, Ready, Reported
from mlops.training.leasing import GroupLease, Leases, renew_if_due, reserve_group, settle_group
from mlops.training.spec import SweepSpec

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class TrialRequest:
    """The trial to run."""

    run_id: str
    """Names the run, its lease and its worker group; new for every run."""
    spec: SweepSpec
    trainer_file: Path
    number: int
    params: Mapping[str, Any]
    """Of the trial."""
    reserved: Mapping[str, Any]
    """`columns` and `classes`."""
    seed: int
    folder: Path
    """Empty; gets checkpoints and weights."""
    spender: str = ""

    def to_task(self) -> AttemptTask:
        """What each worker gets."""
        needed = {it.metric for it in self.spec.objectives} | {it.metric for it in self.spec.constraints}
        return AttemptTask(
            sweep_id=self.run_id,
            trial=self.number,
            attempt=0,
            params={**self.params, **self.reserved},
            seed=self.seed,
            epochs=self.spec.epochs,
            trainer_file=str(self.trainer_file),
            trainer_digest=digest_file(self.trainer_file),
            trial_folder=str(self.folder),
            checkpoint_epochs=self.spec.epochs,
            required_metrics=tuple(sorted(needed)),
            audit_pool=self.spec.audit_pool,
            audit_seed=self.spec.seed,
        )


def run_one_trial(
    request: TrialRequest, *, crew: Crew, leases: Leases, clock: Clock, say: Callable[[str], None]
) -> Path | Refusal:
    """Train to the last epoch; the caller closes the crew.

    Returns:
        The weights file, or the refusal of the budget.

    Raises:
        TrainingError: The trainer failed, or the group was lost.
    """
    spec = request.spec
    lease = reserve_group(
        leases,
        spec=spec,
        workers=spec.workers,
        sweep_id=request.run_id,
        key=f"{request.run_id}:group",
        holder=request.run_id,
        spender=request.spender,
        expected_seconds=0.0,
        clock=clock,
    )
    if isinstance(lease, Refusal):
        return lease
    name = f"{request.run_id}-group"
    shape = GroupShape(spec.workers, spec.accelerators.kind, spec.accelerators.count)
    try:
        crew.start_group(name, shape=shape, until_us=lease.until_us, start_deadline_seconds=spec.start_deadline)
        return Path(_follow(request, name, lease, crew=crew, leases=leases, clock=clock, say=say).weights_file)
    finally:
        crew.stop_group(name)
        settle_group(leases, lease.lease.lease_id, fencing_token=lease.lease.fencing_token, ended_us=clock.now_us())


def _follow(
    request: TrialRequest,
    name: str,
    lease: GroupLease,
    *,
    crew: Crew,
    leases: Leases,
    clock: Clock,
    say: Callable[[str], None],
) -> Ended:
    while True:
        if renew_if_due(leases, lease, spec=request.spec, clock=clock):
            crew.extend(name, until_us=lease.until_us)
        if lease.refusal is not None and clock.monotonic_us() >= lease.until_us:
            raise TrainingError(f"trial {request.number} ran out of budget: {lease.refusal.render_text()}")
        for event in crew.next_events(timeout_seconds=_POLL_SECONDS):
            ended = _take(event, request, name, lease, crew=crew, say=say)
            if ended is not None:
                return ended


def _take(
    event: Event, request: TrialRequest, name: str, lease: GroupLease, *, crew: Crew, say: Callable[[str], None]
) -> Ended | None:
    if isinstance(event, Ready):
        crew.extend(name, until_us=lease.until_us)
        crew.begin(name, request.to_task())
    elif isinstance(event, Reported):
        say(f"epoch {event.epoch + 1} of {request.spec.epochs}")
        if event.epoch + 1 < request.spec.epochs:
            crew.answer(name, Answer.CONTINUE)
    elif isinstance(event, Gone):
        raise TrainingError(f"the worker group of trial {request.number} was lost: {event.reason}")
    elif isinstance(event, Ended):
        if event.outcome != "complete":
            raise TrainingError(f"trial {request.number} ended as {event.outcome}: {event.reason}")
        return event
    return None
