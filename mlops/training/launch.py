"""From a project to a running sweep: reads spec, dataset version and lock, and opens the crew on Ray.

The release step and `mlops sweep` both come through here, so that they name the same sweep.
Leaves to others: the sweep itself (mlops/training/sweep), memoising it (mlops/training/step_sweep).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from mlops.clock import Clock
from mlops.datasets.fence import find_training_fence
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.errors import EnvironmentFault, Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_file, digest_json
from mlops.registry.mirror import DatasetReference, Mirror
from mlops.training.attempt import Crew
from mlops.training.contract import contract_of_schema
from mlops.training.ensemble import EnsembleRequest, find_trained, train_ensemble
from mlops.training.isolation import split_groups
from mlops.training.leasing import GroupLeases
from mlops.training.locked_environment import read_pins
from mlops.training.optuna_search import only_point
from mlops.training.ray_ephemeral import ClusterLeases, ClusterStarter, CommandStarter, started_cluster, stop_orphans
from mlops.training.spec import SweepSpec, Value, load_sweep_spec, verify_parameters
from mlops.training.sweep import Ensemble, SweepGround, SweepOutcome, SweepRequest, TrialResult, run_sweep

WORKER_CODE = (
    "mlops.datasets.reader",
    "mlops.datasets.plan",
    "mlops.training.worker",
    "mlops.training.data_parallel",
    "mlops.training.audit_pool",
    "mlops.training.isolation",
    "mlops.training.private_training",
    "mlops.training.measuring",
    "mlops.training.seeds",
    "mlops.training.optuna_search",
    "mlops.training.winner",
)
"""The modules that decide which weights come out of a sweep; editing others does not train again."""


def load_launch_spec(places: Places, product: str, *, trials: int | None = None) -> SweepSpec:
    """The sweep spec of a product, with another number of trials where asked.

    Raises:
        ProjectError: The file has problems.
    """
    spec = load_sweep_spec(places.sweep_file(product))
    return spec if trials is None else spec.model_copy(update={"trials": trials})


def make_request(
    places: Places, spec: SweepSpec, *, version: DatasetVersion, tags: Mapping[str, str], spender: str
) -> SweepRequest:
    """The request of a sweep, with the digests of all that its weights depend on.

    Args:
        places: The project.
        spec: What is searched.
        version: The data.
        tags: For MLflow, such as `mlops.commit`.
        spender: The person in whose name the budget is used.
    """
    contract = contract_of_schema(version.schema, product=spec.product, digest=version.digest)
    lock = digest_file(places.lock_file) if places.lock_file.is_file() else digest_json(None)
    splits = {name: sum(shard.rows for shard in version.manifest.shards_of(name)) for name in version.schema.splits}
    return SweepRequest(
        spec=spec,
        trainer_file=places.trainer_file(spec.product),
        inputs={
            "trainer": digest_file(places.trainer_file(spec.product)),
            "spec": digest_json(spec.to_json()),
            "lock": lock,
            "manifest": version.digest,
            "code": digest_code(*WORKER_CODE),
        },
        reserved={"columns": contract.column_sizes(), "classes": len(contract.classes)},
        dataset=DatasetReference(
            name=version.name,
            digest=version.digest,
            revision=version.dvc_digest,
            source=f"datasets.dvc#datasets/{version.name}",
            profile={f"{name}_rows": rows for name, rows in splits.items()},
        ),
        checkpoints=places.checkpoints,
        tags={"mlops.lock": lock, **tags},
        spender=spender,
    )


def launch_sweep(
    places: Places,
    request: SweepRequest,
    *,
    version: DatasetVersion,
    ledger: Ledger,
    clock: Clock,
    ids: Ids,
    leases: GroupLeases,
    mirror: Mirror,
    say: Callable[[str], None],
    withdrawn: frozenset[bytes] | None = None,
    starter: ClusterStarter | None = None,
) -> SweepOutcome | Refusal:
    """Run a sweep on Ray, or go on with it, or read it back; see `run_sweep`.

    Refused when the data may not be used for the sweep's purpose, or holds people who withdrew: everyone with a
    tombstone, or those in `withdrawn`.

    Raises:
        EnvironmentFault: No cluster can be reached or started, or it can never hold one worker group.
        TrainingError: The data has too few groups of people for the isolation that is asked for.
    """
    fence = find_training_fence(places, version, purpose=request.spec.purpose, subjects=withdrawn)
    if fence is not None:
        return fence
    if request.spec.isolation is not None:  # said before the search is paid for
        split_groups(*version.schema.splits["train"], request.spec.isolation)
    starter = starter or CommandStarter()
    stop_orphans(places, leases=leases, starter=starter, clock=clock, say=say)
    paid = ClusterLeases(leases, clock=clock) if request.spec.cluster == "ephemeral" else None
    leases = paid or leases
    with ExitStack() as stack:

        def open_crew() -> Crew | Refusal:
            stack.close()  # what a crew before this one held
            opened = _open_crew(places, request, version=version, say=say, leases=leases, paid=paid, starter=starter)
            return stack.enter_context(opened)

        ground = SweepGround(
            ledger=ledger, clock=clock, ids=ids, leases=leases, mirror=mirror, open_crew=open_crew, say=say
        )

        def join(params: Mapping[str, Value]) -> Ensemble | Refusal:
            return train_ensemble(EnsembleRequest(request, version=version, params=params), ground)

        only = only_point(request.spec) if request.spec.isolation is not None else None
        if only is not None:  # a retrain with released parameters: nothing to search, only members to train
            verify_parameters(request.spec, trainer_file=request.trainer_file)
            ensemble = join(only)
            if isinstance(ensemble, Refusal):
                return ensemble
            sweep_id, trials = ensemble.sweep_id, ensemble.trained
            if not trials:
                sweep_id, trials = find_trained(EnsembleRequest(request, version=version, params=only), ledger)
            if trials:
                return _outcome_of(replace(ensemble, sweep_id=sweep_id), only, trials)
        outcome = run_sweep(request, ground)
        if isinstance(outcome, Refusal) or request.spec.isolation is None:
            return outcome
        ensemble = join(outcome.winner.params)
        return ensemble if isinstance(ensemble, Refusal) else replace(outcome, ensemble=ensemble)


@contextmanager
def _open_crew(
    places: Places,
    request: SweepRequest,
    *,
    version: DatasetVersion,
    say: Callable[[str], None],
    leases: GroupLeases,
    paid: ClusterLeases | None,
    starter: ClusterStarter,
) -> Iterator[Crew | Refusal]:
    """The crew on the sweep's cluster; with `paid` on one of its own, if that is paid for, until the block ends."""
    with ExitStack() as stack:
        address, spec = "", request.spec
        if paid is not None:
            own = started_cluster(
                places,
                spec,
                sweep_id=request.sweep_id,
                spender=request.spender,
                lock=request.inputs["lock"],
                leases=paid,
                starter=starter,
                say=say,
            )
            started = stack.enter_context(own)
            if isinstance(started, Refusal):
                yield started
                return
            address = started
        report = leases.report_nodes
        opened = open_ray_crew(places, spec, version=version, say=say, report_nodes=report, address=address)
        yield stack.enter_context(opened)


def _outcome_of(ensemble: Ensemble, params: Mapping[str, Value], trials: tuple[TrialResult, ...]) -> SweepOutcome:
    """An ensemble that was trained without a search, shown by its first trained member."""
    shown = replace(trials[0], params=dict(params))
    return SweepOutcome(ensemble.sweep_id, shown, trials, mlflow_run_id="", stopped="", ensemble=ensemble)


def load_version(places: Places, spec: SweepSpec) -> DatasetVersion:
    """The pinned dataset version that a sweep reads."""
    return load_dataset_version(places, spec.dataset)


@contextmanager
def open_ray_crew(
    places: Places,
    spec: SweepSpec,
    *,
    version: DatasetVersion,
    say: Callable[[str], None],
    report_nodes: Callable[..., None] = lambda found, *, kind: None,
    address: str = "",
) -> Iterator[Crew]:
    """Connected to Ray, with a crew whose workers read this dataset version.

    Args:
        places: The project.
        spec: Of the sweep.
        version: The data.
        say: Prints one line.
        report_nodes: Told which machines have accelerators of the sweep's kind.
        address: Of a cluster that was started for the sweep; its groups are not kept for others.

    Raises:
        EnvironmentFault: The cluster can never hold one worker group.
    """
    from mlops.training.ray_cluster import (
        connected,  # ray is imported only when a trial is to be run: it costs a second
    )
    from mlops.training.ray_worker import SourceRecipe, WorkerSetup

    say("connecting to Ray; without one, a local one starts")
    with connected(places, cluster=spec.cluster, address=address, runtime_env=spec.runtime_env) as cpus:
        from mlops.training.ray_group import RayCrew

        needed = spec.accelerators.count * spec.workers
        if spec.accelerators.kind == "cpu" and needed > cpus and not address:
            raise EnvironmentFault(
                f"a worker group needs {needed:g} CPUs, the Ray cluster has {cpus:g}",
                hint=f"lower `workers` or `accelerators` in training/{spec.product}.yaml, or use a larger cluster",
            )
        say(f"Ray with {cpus:g} CPUs")
        from mlops.training.ray_nodes import list_nodes

        report_nodes(list_nodes(spec.accelerators.kind), kind=spec.accelerators.kind)
        recipe = SourceRecipe(version, str(places.cache / "shards"))
        likeness = digest_json(
            {
                "project": str(places.root),
                "dataset": version.digest,
                "lock": digest_file(places.lock_file) if places.lock_file.is_file() else "",
                "code": digest_code(*WORKER_CODE, "mlops.training.ray_worker", "mlops.training.watchdog"),
            }
        )
        lock = places.lock_file.read_text(encoding="utf-8") if places.lock_file.is_file() else ""
        setup = WorkerSetup(source=recipe, keys_folder=str(places.keys_folder), pins=read_pins(lock))
        crew = RayCrew(setup, likeness="" if address else likeness)
        try:
            yield crew
        finally:
            crew.close()
