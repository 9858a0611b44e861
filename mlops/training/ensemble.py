"""Training the members of an ensemble: a sweep of its own, with one trial per member that is not there yet.

Weights and slice checkpoints lie under their keys (isolation.py), so calling this again after a person was forgotten
trains only the members that read them, each from its last clean slice, to the same bits as from scratch.
Leaves to others: who reads what (isolation.py), the module that joins the members (trainer.py), purging (files.py).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlops.datasets.version import DatasetVersion
from mlops.errors import Reason, Refusal, TrainingError
from mlops.files import write_atomically
from mlops.ledger.connection import Ledger
from mlops.provenance.digest import digest_file, digest_json
from mlops.training import sql_trials
from mlops.training.isolation import ENSEMBLES_FOLDER, SHARDS_FILE, Member, Slice, plan_members
from mlops.training.ledger_loss import outlast
from mlops.training.spec import MEMBER, Choice, Isolation, Pruner, StopEarly, SweepSpec, Value
from mlops.training.sql_trials import COMPLETE
from mlops.training.sweep import (
    MEMBERS,
    Ensemble,
    SweepGround,
    SweepRequest,
    TrialResult,
    drive,
    load_trials,
    make_task,
    open_book,
)
from mlops.training.sweep_book import SweepBook
from mlops.training.sweep_driver import STOPPED_BY_REQUEST
from mlops.training.sweep_state import MemberTask

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class EnsembleRequest:
    """The winner that is trained as isolated members."""

    sweep: SweepRequest
    """The sweep that it won; names trainer, lock, code, budget and machines."""
    version: DatasetVersion
    """The data; a later version than the sweep's when people were forgotten since."""
    params: Mapping[str, Value]
    """Of the winning trial, the reserved ones left out."""

    @property
    def isolation(self) -> Isolation:
        """Numbers of members and slices."""
        assert self.sweep.spec.isolation is not None, "asked for an ensemble without `isolation`"
        return self.sweep.spec.isolation

    def members(self) -> tuple[Member, ...]:
        """Who reads what, and the keys of all slices."""
        inputs = self.sweep.inputs
        return plan_members(
            self.version,
            self.isolation,
            seed=self.sweep.spec.seed,
            depends_on={
                "params": dict(self.params),
                "stage_epochs": self.isolation.stage_epochs(self.sweep.spec.epochs),
                "workers": self.sweep.spec.workers,
                **{name: inputs[name] for name in ("trainer", "lock", "code") if name in inputs},
            },
        )


def train_ensemble(request: EnsembleRequest, ground: SweepGround) -> Ensemble | Refusal:
    """Train the members that are not there yet, and join the weights of all.

    Args:
        request: Whom to train, on what.
        ground: What it stands on; each member is a trial of a sweep of its own.

    Returns:
        The ensemble; or a refusal: the budget does not allow it, or it was stopped.

    Raises:
        TrainingError: A member failed, or isolation does not fit the data.
    """
    members, checkpoints = request.members(), request.sweep.checkpoints
    missing = [member for member in members if not _weights_of(member, checkpoints).is_file()]
    trials: tuple[TrialResult, ...] = ()
    sweep_id = ""
    if missing:
        for member in missing:
            _announce(member, request, checkpoints)
        _say_what_is_trained(request, ground.say)
        sweep = _plan_sweep(request, missing, ground.ledger)
        trained = outlast(
            lambda is_again: _train_missing(sweep, missing, ground, is_again=is_again),
            ledger=ground.ledger,
            clock=ground.clock,
            say=ground.say,
        )
        if isinstance(trained, Refusal):
            return trained
        sweep_id, trials = sweep.sweep_id, trained
        for trial in trials:
            _keep_weights(members[int(trial.params[MEMBER])], trial, checkpoints)
    path = _join(members, checkpoints)
    return Ensemble(len(members), sweep_id, trials, path, digest_file(path))


def _say_what_is_trained(request: EnsembleRequest, say: Callable[[str], None]) -> None:
    total, slices = request.isolation.groups, request.isolation.slices
    planned = plan_retrain(request)
    parts = ", ".join(f"{number} from slice {stage + 1} of {slices}" for number, stage in planned.items())
    say(f"ensemble: {total - len(planned)} of {total} members are there; training member {parts}")


def find_trained(request: EnsembleRequest, ledger: Ledger) -> tuple[str, tuple[TrialResult, ...]]:
    """The newest sweep that trained members on this very data, and its trials; for a caller that ended before it heard.

    Empty when none did: all members were there from earlier data.
    """
    with ledger.read() as connection:
        rows = sql_trials.list_sweeps(connection, product=request.sweep.spec.product)
    for row in rows:
        if row.state == "finished" and MEMBERS in row.inputs and row.inputs.get("manifest") == request.version.digest:
            return row.sweep_id, load_trials(ledger, row.sweep_id)
    return "", ()


def _train_missing(
    sweep: SweepRequest, missing: list[Member], ground: SweepGround, *, is_again: bool
) -> tuple[TrialResult, ...] | Refusal:
    book = open_book(sweep, ground, is_again=is_again)
    tasks = {member.number: _task_of(member, sweep.checkpoints) for member in missing}
    task = make_task(sweep, book, trainer_digest=sweep.inputs.get("trainer", ""), members=tasks)
    ended = drive(sweep.spec, task, book, ground)
    return _conclude_members(book, ended=ended) or load_trials(ground.ledger, book.sweep_id)


def plan_retrain(request: EnsembleRequest) -> dict[int, int]:
    """What `train_ensemble` would train: number of each missing member, and its first stage that is not there."""
    checkpoints = request.sweep.checkpoints
    return {
        member.number: sum(any(part.folder(checkpoints).glob("epoch-*")) for part in member.slices)
        for member in request.members()
        if not _weights_of(member, checkpoints).is_file()
    }


def _plan_sweep(request: EnsembleRequest, missing: list[Member], ledger: Ledger) -> SweepRequest:
    """The sweep to run; a finished one whose weights were removed is of no use, and gets a successor."""
    for generation in itertools.count():
        sweep = _sweep_of_members(request, missing, generation=generation)
        trials = load_trials(ledger, sweep.sweep_id)
        if all(it.weights_file is None or it.weights_file.is_file() for it in trials):
            return sweep
    raise AssertionError("unreachable")


def _sweep_of_members(request: EnsembleRequest, missing: list[Member], *, generation: int) -> SweepRequest:
    """A sweep with one trial per missing member; the same members on the same data have the same name."""
    spec, isolation = request.sweep.spec, request.isolation
    stage_epochs = isolation.stage_epochs(spec.epochs)
    of_members: SweepSpec = spec.model_copy(
        update={
            "space": {MEMBER: Choice(choices=tuple(member.number for member in missing))},
            "fixed": dict(request.params),
            "sampler": "grid",
            "trials": len(missing),
            "epochs": stage_epochs * isolation.slices,
            "pruner": Pruner(),
            "stop": StopEarly(spend=spec.stop.spend),
            "isolation": None,
            "first": (),
            "warm_start": (),
            "constraints": (),
            "lag": None,
        }
    )
    content = {**request.sweep.inputs, "manifest": request.version.digest, "spec": digest_json(of_members.to_json())}
    tags = {**request.sweep.tags, "mlops.ensemble_of": request.sweep.sweep_id}
    keys = [member.slices[-1].key for member in missing]
    inputs = {**content, MEMBERS: digest_json({"keys": keys, "generation": generation})}
    return replace(request.sweep, spec=of_members, inputs=inputs, tags=tags)


def _announce(member: Member, request: EnsembleRequest, checkpoints: Path) -> None:
    """Say which shards a slice has seen before there is a checkpoint of it: a purge must find it whatever happens."""
    for part in member.slices:
        content = {
            "product": request.sweep.spec.product,
            "dataset": request.version.name,
            "member": member.number,
            "shards": sorted(shard.sha256 for shard in part.shards),
        }
        write_atomically(part.folder(checkpoints) / SHARDS_FILE, json.dumps(content, indent=1) + "\n")


def _task_of(member: Member, checkpoints: Path) -> MemberTask:
    return MemberTask(
        seed=member.seed,
        slices=tuple(part.groups for part in member.slices),
        slice_folders=tuple(str(part.folder(checkpoints)) for part in member.slices),
    )


def _weights_of(member: Member, checkpoints: Path) -> Path:
    last: Slice = member.slices[-1]
    return last.folder(checkpoints) / WEIGHTS


def _conclude_members(book: SweepBook, *, ended: Refusal | str) -> Refusal | None:
    trials = load_trials(book.ledger, book.sweep_id)
    failed = [trial for trial in trials if trial.state != COMPLETE]
    if isinstance(ended, Refusal):
        book.close(state="stopped", reason=ended.render_text(), winner=None)
        return ended
    if ended == STOPPED_BY_REQUEST:
        book.close(state="stopped", reason=ended, winner=None)
        return Refusal((Reason("stopped", f"{book.sweep_id} was stopped; the same command goes on with it"),))
    if failed:
        book.close(state="failed", reason="a member failed", winner=None)
        raise TrainingError(
            f"{len(failed)} of {len(trials)} members of {book.sweep_id} failed",
            items=tuple(f"member {trial.params[MEMBER]}: {trial.reason}" for trial in failed),
            hint="an ensemble needs all its members; the same parameters trained on all rows, so look at small slices",
        )
    book.close(state="finished", reason="", winner=None)  # all of them are joined
    book.keep_run_ids()
    return None


def _keep_weights(member: Member, trial: TrialResult, checkpoints: Path) -> None:
    assert trial.weights_file is not None  # a complete trial has weights
    target = _weights_of(member, checkpoints)
    write_atomically(target, trial.weights_file.read_bytes())


def _join(members: tuple[Member, ...], checkpoints: Path) -> Path:
    """One file with the weights of all members, named by the keys of their last slices."""
    from safetensors.torch import load_file, save_file  # loads torch, which costs seconds

    name = digest_json([member.slices[-1].key for member in members]).partition(":")[2]
    path = checkpoints / ENSEMBLES_FOLDER / name / WEIGHTS
    joined = {
        f"members.{member.number}.{tensor}": value
        for member in members
        for tensor, value in load_file(_weights_of(member, checkpoints)).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{WEIGHTS}")
    save_file(joined, aside)
    aside.replace(path)
    shards = {"shards": sorted({shard.sha256 for member in members for shard in member.slices[-1].shards})}
    write_atomically(path.parent / SHARDS_FILE, json.dumps(shards) + "\n")
    return path
