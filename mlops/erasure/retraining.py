"""Training a product again without the people of a batch: the released parameters, through the steps of a release.

Leaves to others: the steps (mlops/release.py and below), whether it may start (batches.py), serving it (rollout.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mlops.deploy.erasure_rules import OWN_BUDGET, ErasureSpec
from mlops.erasure.clean_version import data_step
from mlops.errors import Refusal
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.lineage import walk_back
from mlops.provenance.sql_steps import StepRecord, find_steps, find_steps_of_digest
from mlops.provenance.steps import StepRun
from mlops.release import STEPS, Release, Steps, run_steps
from mlops.training.spec import Pruner, StopEarly, SweepSpec, load_sweep_spec
from mlops.training.step_sweep import SweepStepRequest, sweep_step


@dataclass(frozen=True)
class ReleasedVersion:
    """The newest registered version of a product that has an image."""

    product: str
    number: int
    version: str
    image: str
    candidate: str
    params: dict[str, Any]
    """Of the trial that won, without the reserved ones."""


@dataclass(frozen=True)
class Retrained:
    """What came out of a retrain."""

    number: int
    version: str
    candidate: str
    image: str
    gate: str
    verdict: str
    weights: str


def find_products(places: Places, dataset: str) -> dict[str, SweepSpec]:
    """Products that are trained on a dataset."""
    specs = {product: load_sweep_spec(places.sweep_file(product)) for product in places.products()}
    return {product: spec for product, spec in specs.items() if spec.dataset == dataset}


def find_newest_release(connection: sa.Connection, product: str) -> ReleasedVersion | None:
    """What people would get if they promoted the newest version; None when nothing was ever released."""
    for registration in find_steps(connection, kind="registration", product=product):
        version = registration.outputs["version"]
        images = [step for step in find_steps_of_digest(connection, version, direction="in") if step.kind == "image"]
        if not images:
            continue
        sweeps = [step for step in walk_back(connection, (version,)).steps if step.kind == "sweep"]
        return ReleasedVersion(
            product=product,
            number=int(registration.facts["number"]),
            version=version,
            image=images[0].outputs["image"],
            candidate=registration.inputs["candidate"],
            params=dict(sweeps[0].facts.get("params", {})) if sweeps else {},
        )
    return None


def choose_budget(places: Places, rules: ErasureSpec, spec: SweepSpec) -> str:
    """Who pays for a retrain."""
    if rules.budget is not None:
        return rules.budget
    return OWN_BUDGET if (places.budgets_folder / f"{OWN_BUDGET}.yaml").is_file() else spec.budget


def plan_retrain(spec: SweepSpec, released: ReleasedVersion, *, budget: str) -> SweepSpec:
    """The sweep with one point: the released parameters. Constraints of the search are left to the gate."""
    point = {name: value for name, value in released.params.items() if name in spec.space}
    fixed = {name: released.params.get(name, value) for name, value in spec.fixed.items()}
    return spec.model_copy(
        update={
            "budget": budget,
            "first": (point,),
            "fixed": fixed,
            "trials": 1,
            "groups": 1,
            "lag": None,
            "sampler": "random",
            "pruner": Pruner(),
            "constraints": (),
            "stop": StopEarly(),
        }
    )


def retrain(
    project: Project,
    spec: SweepSpec,
    *,
    withdrawn: frozenset[bytes],
    allow_dirty: bool,
    say: Callable[[str], None],
) -> Retrained | Refusal:
    """Bake the product again on the clean version; killed anywhere, the next call goes on.

    Args:
        project: Where.
        spec: From `plan_retrain`.
        withdrawn: People of the batch, whom the data must not hold; whoever withdrew since belongs to the next batch.
        allow_dirty: As in `mlops release`.
        say: Prints one line of progress.

    Returns:
        The new version, or the *no* of source check, budget, gate or probe.

    Raises:
        MlopsError: A step failed.
    """
    release = Release(spec.product, spec, project.workbench(say), project.person, allow_dirty)
    ended = run_steps(release, retrain_steps(project, withdrawn=withdrawn))
    return ended if isinstance(ended, Refusal) else _describe(release.done)


def retrain_steps(project: Project, *, withdrawn: frozenset[bytes]) -> Steps:
    """The steps of a release, of which the first two are an erasure's own: clean data, and no search."""

    def bring_clean_data(it: Release) -> StepRun:
        return data_step(it.bench, product=it.product, dataset=it.spec.dataset)

    def train(it: Release) -> StepRun | Refusal:
        commit = it.done("source check").facts["commit"]
        whole = load_sweep_spec(project.places.sweep_file(it.product))  # its trainer was checked at the release
        request = SweepStepRequest(it.spec, commit=commit, spender=it.person, withdrawn=withdrawn, checked=whole)
        return sweep_step(it.bench, request, manifest=it.done("data").outputs["manifest"])

    return {**STEPS, "data": bring_clean_data, "sweep": train}


def _describe(done: Callable[[str], StepRecord]) -> Retrained:
    gate, registration = done("gate"), done("registration")
    return Retrained(
        number=int(registration.facts["number"]),
        version=registration.outputs["version"],
        candidate=registration.inputs["candidate"],
        image=done("image").outputs["image"],
        gate=gate.outputs["gate"],
        verdict=str(gate.facts["verdict"]),
        weights=done("sweep").outputs["weights"],
    )
