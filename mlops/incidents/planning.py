"""What can be done about an incident: the rollback that would help now, and the retrain that mends it, with its cost.

Leaves to others: doing it (`mlops rollback`, `mlops release`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlops.deploy.environment import load_environment
from mlops.deploy.site import Site
from mlops.deploy.sql_deployments import FAILED, load_deployments
from mlops.deploy.state_keeper import load_desired_state
from mlops.deploy.withdrawal import plan_rollback
from mlops.errors import MlopsError, Refusal
from mlops.incidents.affected import Affected
from mlops.project.opening import Project
from mlops.provenance.sql_steps import find_newest_steps
from mlops.provenance.steps import StepMissing, StepRun
from mlops.release import STEPS, Release, Steps, run_steps
from mlops.training.cost import describe_cost
from mlops.training.spec import load_sweep_spec


@dataclass(frozen=True)
class RollbackOffer:
    """What a rollback of one environment would do."""

    environment: str
    command: str
    """Empty when none would help."""
    text: str


@dataclass(frozen=True)
class RetrainPlan:
    """What `mlops release` would do now."""

    reused: tuple[str, ...]
    to_run: tuple[str, ...]
    cost: str
    """Forecast of a new sweep, for people."""
    advice: str


def plan_rollbacks(site: Site, product: str, affected: Affected) -> tuple[RollbackOffer, ...]:
    """For every environment that serves an affected version: the command that takes it to one that is not affected."""
    offers: list[RollbackOffer] = []
    bad = {version.number for version in affected.versions}
    for name in sorted({entry.environment for entry in affected.environments if entry.role == "serves"}):
        rules = load_environment(site.places, name)
        release = load_desired_state(site, name).find_product(product)
        if release is None:
            continue
        leave = release.versions[0].image
        command = f"mlops rollback {name} --product {product}"
        usual = plan_rollback(site, rules, release, leave=leave)
        if not isinstance(usual, Refusal) and usual.versions[0].number not in bad:
            offers.append(RollbackOffer(name, command, f"goes back to version {usual.versions[0].number}"))
            continue
        with site.ledger.read() as connection:
            rows = load_deployments(connection, environment=name, product=product)
        others = dict.fromkeys(row.number for row in rows if row.outcome != FAILED and row.number not in bad)
        good = next(
            (
                number
                for number in others
                if not isinstance(plan_rollback(site, rules, release, leave=leave, to=number), Refusal)
            ),
            None,
        )
        if good is not None:
            offers.append(RollbackOffer(name, f"{command} --to {good}", f"goes back to version {good}"))
        else:
            text = "no version that served well here answers better; only a new release mends it"
            offers.append(RollbackOffer(name, "", text))
    return tuple(offers)


def plan_retrain(project: Project, product: str) -> RetrainPlan:
    """What a release would reuse and do once the case is committed, and what a new sweep would cost."""
    spec = load_sweep_spec(project.places.sweep_file(product))
    preview = Release(product, spec, project.preview().workbench(lambda line: None), project.person, allow_dirty=True)
    cost = describe_cost(project.places, project.ledger, spec, clock=project.clock, ids=project.ids)
    try:
        run_steps(preview, {**_BEFORE_GATE, "source check": _find_source})
    except StepMissing:
        pass
    except MlopsError as error:
        return RetrainPlan((), tuple(STEPS), cost, f"a release cannot start: {error.message}")
    reused = tuple(name for name in preview.steps if name != "source check")
    advice = (
        "the sweep would be reused, and its winner is what failed: change data, trainer, search space or seed first"
        if "sweep" in reused
        else "the sweep would run anew; the gate then judges its winner by this case too"
    )
    return RetrainPlan(reused, tuple(name for name in STEPS if name not in reused), cost, advice)


_BEFORE_GATE: Steps = dict(list(STEPS.items())[: list(STEPS).index("gate")])
"""Steps that a new case leaves alone; the gate and all after it hang on the cases."""


def _find_source(it: Release) -> StepRun:
    """The last source check: it runs again for the commit with the case, costs nothing, and changes no later step."""
    with it.bench.ledger.read() as connection:
        found = find_newest_steps(connection, product=it.product).get("source-check")
    if found is None:
        raise StepMissing("source-check")
    return StepRun(found, is_reused=True)
