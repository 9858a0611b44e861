"""From a project to a running sweep: reads spec, dataset version, lock and commit, and opens the crew on Ray.

The release step and `mlops sweep launch` both come through here.
Leaves to others: the sweep itself (mlops/training/sweep).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from mlops.clock import Clock
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.errors import EnvironmentFault, Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_file, digest_json
from mlops.registry.mirror import DatasetReference, Mirror
from mlops.training.attempt import Crew
from mlops.training.contract import contract_of_schema
from mlops.training.leasing import Leases
from mlops.training.spec import SweepSpec, load_sweep_spec
from mlops.training.sweep import SweepOutcome, SweepRequest, run_sweep

if TYPE_CHECKING:
    from mlops.training.ray_worker import SourceRecipe


def launch_sweep(
    places: Places,
    *,
    product: str,
    ledger: Ledger,
    clock: Clock,
    ids: Ids,
    leases: Leases,
    mirror: Mirror,
    say: Callable[[str], None],
    trials: int | None = None,
    tags: Mapping[str, str] | None = None,
    spender: str = "",
) -> SweepOutcome | Refusal:
    """Run the sweep of a product on Ray, or go on with it, or read it back; see `run_sweep`.

    Args:
        places: The project.
        product: Whose sweep.
        ledger: The project's ledger.
        clock: Time.
        ids: New identifiers.
        leases: The lease book.
        mirror: Shows the sweep in MLflow.
        say: Prints one line of progress.
        trials: Instead of the number in the spec.
        tags: For MLflow.
        spender: The person in whose name the budget is used.
    """
    spec = load_sweep_spec(places.sweep_file(product))
    if trials is not None:
        spec = SweepSpec.model_validate({**dict(spec), "trials": trials})
    version = load_dataset_version(places, spec.dataset)
    request = make_request(places, spec, version=version, tags=tags or {}, spender=spender)
    with ExitStack() as stack:
        return run_sweep(
            request,
            ledger=ledger,
            clock=clock,
            ids=ids,
            leases=leases,
            mirror=mirror,
            open_crew=lambda: stack.enter_context(open_ray_crew(places, spec, version=version, say=say)),
            say=say,
        )


def make_request(
    places: Places, spec: SweepSpec, *, version: DatasetVersion, tags: Mapping[str, str], spender: str
) -> SweepRequest:
    """The request of a sweep with the digests of all that its weights depend on."""
    contract = contract_of_schema(version.schema, product=spec.product, digest=version.digest)
    lock = digest_file(places.lock_file) if places.lock_file.is_file() else digest_json(None)
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
            profile={"shards": len(version.manifest.shards)},
        ),
        checkpoints=places.checkpoints,
        tags={"mlops.lock": lock, **tags},
        spender=spender,
    )


WORKER_CODE = (
    "mlops.datasets.reader",
    "mlops.datasets.plan",
    "mlops.training.worker",
    "mlops.training.measuring",
    "mlops.training.seeds",
    "mlops.training.optuna_search",
    "mlops.training.winner",
)
"""The modules that decide which weights come out of a sweep; editing others does not train again."""


@contextmanager
def open_ray_crew(
    places: Places, spec: SweepSpec, *, version: DatasetVersion, say: Callable[[str], None]
) -> Iterator[Crew]:
    """Connected to Ray, with a crew for this dataset version.

    Raises:
        EnvironmentFault: The cluster can never hold one worker group.
    """
    from mlops.training.ray_worker import SourceRecipe  # imports below load ray, which costs a second

    recipe = SourceRecipe(version, str(places.cache / "decoded"))
    with open_crew_of(places, spec, source=recipe, say=say) as crew:
        yield crew


@contextmanager
def open_crew_of(
    places: Places, spec: SweepSpec, *, source: SourceRecipe, say: Callable[[str], None]
) -> Iterator[Crew]:
    """As `open_ray_crew`, for any batch source."""
    from mlops.training.ray_cluster import connected
    from mlops.training.ray_worker import WorkerSetup

    with connected(places) as cpus:
        from mlops.training.ray_group import RayCrew

        needed = spec.accelerators.count * spec.workers
        if spec.accelerators.kind == "cpu" and needed > cpus:
            raise EnvironmentFault(
                f"a worker group needs {needed:g} CPUs, the Ray cluster has {cpus:g}",
                hint=f"lower `workers` or `accelerators` in training/{spec.product}.yaml, or use a larger cluster",
            )
        say(f"Ray with {cpus:g} CPUs")
        for folder in (places.keys_folder, places.cache, places.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)  # confined workers cannot make folders beside the keys
        crew = RayCrew(WorkerSetup(source=source, keys_folder=str(places.keys_folder)))
        try:
            yield crew
        finally:
            crew.close()
