"""The release step `sweep`: the search under its budget, and the trial that won.

Leaves to others: the sweep itself (sweep.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlops.budgets.leases import LeaseBook
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.errors import Refusal
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_file
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.registry.mirror import DatasetReference
from mlops.registry.mlflow_runs import open_mirror
from mlops.training.attempt import Crew
from mlops.training.contract import contract_of_schema
from mlops.training.spec import SweepSpec
from mlops.training.sweep import SweepOutcome, SweepRequest, run_sweep

KIND = "sweep"


@dataclass(frozen=True)
class SweepStepRequest:
    """What a sweep is launched with, by a release or by hand."""

    spec: SweepSpec
    commit: str
    """Git commit that is checked out, for the record."""
    spender: str
    """The person in whose name the budget is used."""

    def inputs(self, places: Places, *, manifest: str) -> dict[str, str]:
        """Everything the weights depend on; not the budget, and not the commit, or each README edit would retrain."""
        return {
            "trainer": digest_file(places.trainer_file(self.spec.product)),
            "spec": digest_file(places.sweep_file(self.spec.product)),
            "lock": digest_file(places.lock_file),
            "manifest": manifest,
            "code": digest_code("mlops.training", "mlops.datasets"),
        }


def sweep_step(bench: Workbench, request: SweepStepRequest, *, manifest: str) -> StepRun | Refusal:
    """Sweep once per trainer, spec, lock, data and training code.

    Returns:
        The step, or the refusal: no budget, stopped by a person, no trial within the constraints.

    Raises:
        TrainingError: Every trial failed, or another driver has the sweep.
    """
    places = bench.places
    inputs = request.inputs(places, manifest=manifest)

    def sweep() -> StepOutcome | Refusal:
        outcome = launch_sweep(bench, request, inputs=inputs)
        if isinstance(outcome, Refusal):
            return outcome
        winner = outcome.winner
        assert winner.weights_file is not None  # a winner is a finished trial
        return StepOutcome(
            outputs={"weights": f"sha256:{winner.weights_sha256.removeprefix('sha256:')}"},
            facts={
                "summary": f"trial {winner.number} of {len(outcome.trials)}: {_render_metrics(winner.metrics)}",
                "sweep_id": outcome.sweep_id,
                "trial": winner.number,
                "trials": len(outcome.trials),
                "params": winner.params,
                "metrics": winner.metrics,
                "seed": winner.seed,
                "mlflow_run_id": winner.mlflow_run_id,
                "lease_ids": list(winner.lease_ids),
                "weights_file": str(winner.weights_file.relative_to(places.root)),
                "commit": request.commit,
            },
        )

    def is_present(record: StepRecord) -> bool:
        return (places.root / record.facts["weights_file"]).is_file()

    return bench.book.run_or_refuse(
        KIND, product=request.spec.product, inputs=inputs, action=sweep, is_present=is_present
    )


def launch_sweep(bench: Workbench, request: SweepStepRequest, *, inputs: dict[str, str]) -> SweepOutcome | Refusal:
    """Run the sweep on Ray with the project's budgets, mirrored to its MLflow.

    Raises:
        TrainingError: as `run_sweep`.
        EnvironmentFault: No Ray can be reached or started.
    """
    spec, places, clock = request.spec, bench.places, bench.clock
    version = load_dataset_version(places, spec.dataset)
    contract = contract_of_schema(version.schema, product=spec.product, digest=version.digest)
    with contextlib.ExitStack() as stack:
        mirror = stack.enter_context(open_mirror(places, clock=clock))

        def open_crew() -> Crew:
            return stack.enter_context(ray_crew(places, version))

        return run_sweep(
            SweepRequest(
                spec=spec,
                trainer_file=places.trainer_file(spec.product),
                inputs=inputs,
                reserved={"columns": contract.column_sizes(), "classes": len(contract.classes)},
                dataset=_reference(version),
                checkpoints=places.checkpoints,
                tags={"mlops.commit": request.commit, "mlops.lock": inputs["lock"]},
                spender=request.spender,
            ),
            ledger=bench.ledger,
            clock=clock,
            ids=bench.ids,
            leases=LeaseBook(bench.ledger, clock, bench.ids),
            mirror=mirror,
            open_crew=open_crew,
            say=lambda line: bench.say(f"      {line}"),
        )


@contextmanager
def ray_crew(places: Places, version: DatasetVersion) -> Iterator[Crew]:
    """Worker groups on Ray that read a dataset version.

    Raises:
        EnvironmentFault: No cluster can be reached or started.
    """
    # Ray's door is opened only when a trial is to be run: importing it costs a second.
    from mlops.training.ray_cluster import connected
    from mlops.training.ray_group import RayCrew
    from mlops.training.ray_worker import SourceRecipe, WorkerSetup

    with connected(places):
        setup = WorkerSetup(
            source=SourceRecipe(version, str(places.cache / "shards")), keys_folder=str(places.keys_folder)
        )
        yield RayCrew(setup)


def _reference(version: DatasetVersion) -> DatasetReference:
    splits = {name: sum(shard.rows for shard in version.manifest.shards_of(name)) for name in version.schema.splits}
    return DatasetReference(
        name=version.name,
        digest=version.digest,
        revision=version.dvc_digest,
        source=f"datasets.dvc#datasets/{version.name}",
        profile={f"{name}_rows": rows for name, rows in splits.items()},
    )


def _render_metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
