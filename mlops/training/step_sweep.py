"""The release step `sweep`: the search under its budget, and the trial that won.

Leaves to others: the sweep itself (sweep.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlops.budgets.opening import open_lease_queue
from mlops.datasets.version import load_dataset_version
from mlops.errors import DatasetError, Refusal
from mlops.provenance.confinement import in_process_method
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.registry.mlflow_runs import open_mirror
from mlops.training.launch import launch_sweep, make_request
from mlops.training.spec import SweepSpec
from mlops.training.step_check import check_step
from mlops.training.sweep import SweepOutcome

KIND = "sweep"


@dataclass(frozen=True)
class SweepStepRequest:
    """What a release sweeps with."""

    spec: SweepSpec
    commit: str
    """Git commit that is checked out, for the record."""
    spender: str
    """The person in whose name the budget is used."""
    withdrawn: frozenset[bytes] | None = None
    """Keyed hashes of people that the data must not hold; None is everyone who withdrew."""
    checked: SweepSpec | None = None
    """A wider spec for which the trainer is checked, so that a check done for it is reused; default `spec`."""


def sweep_step(bench: Workbench, request: SweepStepRequest, *, manifest: str) -> StepRun | Refusal:
    """Sweep once per trainer, spec, lock, data and training code.

    Returns:
        The step, or the refusal: no budget, stopped by a person, no trial within the constraints.

    Raises:
        TrainingError: Every trial failed, or another driver has the sweep.
    """
    places = bench.places
    version = load_dataset_version(places, request.spec.dataset)
    if version.digest != manifest:
        raise DatasetError(
            f"dataset {version.name} is {version.digest[7:19]}, the release began with {manifest[7:19]}",
            hint="run the release again",
        )
    tags = {"mlops.commit": request.commit}
    launched = make_request(places, request.spec, version=version, tags=tags, spender=request.spender)

    def sweep() -> StepOutcome | Refusal:
        checked = check_step(bench, request.checked or request.spec, version=version)  # before the first lease
        if isinstance(checked, Refusal):
            return checked
        with open_mirror(places, clock=bench.clock) as mirror:
            outcome = launch_sweep(
                places,
                launched,
                version=version,
                ledger=bench.ledger,
                clock=bench.clock,
                ids=bench.ids,
                leases=open_lease_queue(places, bench.ledger, bench.clock, bench.ids),
                mirror=mirror,
                say=bench.say,
                withdrawn=request.withdrawn,
            )
        if isinstance(outcome, Refusal):
            return outcome
        winner, ensemble = outcome.winner, outcome.ensemble
        served = ensemble if ensemble is not None else winner
        assert served.weights_file is not None  # a winner is a finished trial
        return StepOutcome(
            outputs={"weights": f"sha256:{served.weights_sha256.removeprefix('sha256:')}"},
            facts={
                "summary": _summarise(outcome),
                "sweep_id": outcome.sweep_id,
                "trial": winner.number,
                "trials": len(outcome.trials),
                "params": winner.params,
                "metrics": winner.metrics,
                "seed": winner.seed,
                "mlflow_run_id": winner.mlflow_run_id,
                "lease_ids": list(winner.lease_ids),
                "weights_file": str(served.weights_file.relative_to(places.root)),
                **({} if ensemble is None else {"members": ensemble.members}),
                "commit": request.commit,
                "confinement": in_process_method(),
            },
        )

    def is_present(record: StepRecord) -> bool:
        return (places.root / record.facts["weights_file"]).is_file()

    return bench.book.run_or_refuse(
        KIND, product=request.spec.product, inputs=launched.inputs, action=sweep, is_present=is_present
    )


def _summarise(outcome: SweepOutcome) -> str:
    winner, ensemble = outcome.winner, outcome.ensemble
    shown = f"trial {winner.number} of {len(outcome.trials)}: {_render_metrics(winner.metrics)}"
    if ensemble is None:
        return shown
    return f"{ensemble.members} isolated members, {len(ensemble.trained)} trained now, joined; by {shown}"


def _render_metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
