"""Bringing a clean version to every environment that serves, or keeps warm, a fenced one.

By the rules of each environment: promotion on evidence (standing approvals count where `erasure: automatic`), then
reconcile; at the deadline what is fenced stops serving, by `at_deadline`. Doing it again does only what is missing.
Leaves to others: deciding a promotion, moving traffic, falling back (mlops/deploy), when the deadline is (batches.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlops.deploy import sql_deployments
from mlops.deploy.desired_state import DesiredState
from mlops.deploy.environment import EnvironmentSpec, list_environments, load_environment
from mlops.deploy.erasure_fence import find_fence, find_fenced_images
from mlops.deploy.instance_check import load_golden_cases
from mlops.deploy.promoting import promote
from mlops.deploy.reconciler import Reconciler
from mlops.deploy.retirement import find_fenced_desired, retire_product
from mlops.deploy.runtimes import choose_runtime
from mlops.deploy.site import Site
from mlops.deploy.state_keeper import load_desired_state
from mlops.errors import MlopsError, Reason, Refusal
from mlops.project.opening import Project

Converge = Callable[[Site, EnvironmentSpec, Callable[[str], None]], tuple[Reason, ...]]
"""Makes the machines of an environment serve its desired state; returns what stands in the way."""
_WAIT_SECONDS = 60.0
"""How long another reconciler of the environment may take to do it."""


@dataclass(frozen=True)
class Move:
    """What became of one product in one environment."""

    environment: str
    product: str
    left: tuple[str, ...]
    """Images that no longer serve, nor are kept to go back to."""
    kind: str
    """`promoted`, `fell-back` or `stopped`; `held-up` when it still serves what is fenced."""
    number: int | None
    """The version that serves now."""
    at_us: int
    reasons: tuple[Reason, ...] = ()


def open_site(project: Project) -> Site:
    """The project as the deploy room needs it."""
    return Site(project.places, project.ledger, project.clock, project.ids, project.step_book)


def order_environments(site: Site) -> list[EnvironmentSpec]:
    """Every environment, those first that others come after."""
    left = {name: load_environment(site.places, name) for name in list_environments(site.places)}
    ordered: list[EnvironmentSpec] = []
    while left:
        ready = [name for name, rules in left.items() if rules.after not in left] or list(left)
        ordered += [left.pop(name) for name in sorted(ready)]
    return ordered


def reconcile_here(site: Site, rules: EnvironmentSpec, say: Callable[[str], None]) -> tuple[Reason, ...]:
    """Reconcile on this machine; when another call is at work, wait for it and do it then."""
    runtime = choose_runtime(rules.runtimes, state=site.places.serving_state)
    reconciler = Reconciler(
        site=site,
        rules=rules,
        runtime=runtime,
        golden=lambda product, version: load_golden_cases(site.places, product, version),
        say=say,
    )
    until_us = site.clock.monotonic_us() + round(_WAIT_SECONDS * 1e6)
    while True:
        outcome = reconciler.run_once()
        if not isinstance(outcome, Refusal):
            return outcome.reasons
        if outcome.reasons[0].code != "reconciler-at-work" or site.clock.monotonic_us() > until_us:
            return outcome.reasons
        site.clock.sleep(0.5)


def roll_out(
    site: Site,
    numbers: Mapping[str, int],
    *,
    people: frozenset[tuple[str, bytes]],
    is_due: bool,
    converge: Converge = reconcile_here,
    say: Callable[[str], None],
) -> tuple[Move, ...]:
    """Move every environment away from fenced versions.

    Args:
        site: Where.
        numbers: Product to the newest version without the batch's people; products without one are missing.
        people: The batch's, as (dataset, keyed hash).
        is_due: The deadline has come: what cannot be replaced stops.
        converge: Makes machines follow.
        say: Prints one line of progress.
    """
    moves: list[Move] = []
    for rules in order_environments(site):
        for product in sorted(rules.traffic.ports):
            move = _move_product(site, rules, product, numbers.get(product), people, is_due=is_due, say=say)
            obstacles = (
                () if move is None and not _serves_fenced(site, rules, product, people) else converge(site, rules, say)
            )
            if move is None and not obstacles:
                continue
            move = move or Move(rules.name, product, (), "held-up", None, site.clock.now_us())
            if obstacles or _serves_fenced(site, rules, product, people):
                move = Move(
                    rules.name, product, move.left, "held-up", move.number, move.at_us, (*move.reasons, *obstacles)
                )
            moves.append(move)
    return tuple(moves)


def _move_product(
    site: Site,
    rules: EnvironmentSpec,
    product: str,
    number: int | None,
    people: frozenset[tuple[str, bytes]],
    *,
    is_due: bool,
    say: Callable[[str], None],
) -> Move | None:
    """Decide a desired state without the batch's people; None when it is one already."""
    state = load_desired_state(site, rules.name)
    fenced = _find_held(site, state, product, people)
    if not fenced:
        return None
    reasons: tuple[Reason, ...] = (Reason("no-clean-version", f"there is no version of {product} without them yet"),)
    if number is not None:
        ended = _promote(site, rules, f"{product}@{number}", fenced, people)
        reasons = ended.reasons if isinstance(ended, Refusal) else ()
    if not reasons:
        say(f"{rules.name}: {product}@{number} is desired")
        return Move(rules.name, product, tuple(fenced), "promoted", number, site.clock.now_us())
    if not is_due:
        return Move(rules.name, product, (), "held-up", None, site.clock.now_us(), reasons)
    retired = retire_product(site, rules, product, why=f"an erasure is due and {reasons[0].text}")
    if isinstance(retired, Refusal):
        return Move(rules.name, product, (), "held-up", None, site.clock.now_us(), retired.reasons)
    after = load_desired_state(site, rules.name).find_product(product)
    kind = "stopped" if after is None else "fell-back"
    say(f"{rules.name}: {product} {kind}: {reasons[0].text}")
    serves = None if after is None else after.versions[0].number
    return Move(rules.name, product, tuple(fenced), kind, serves, site.clock.now_us(), reasons)


def _promote(
    site: Site, rules: EnvironmentSpec, reference: str, fenced: Mapping[str, str], people: frozenset[tuple[str, bytes]]
) -> Refusal | None:
    """People who withdrew after the batch was sealed do not hold up a version that replaces one with them in it."""
    with site.ledger.read() as connection:
        replaced = [find_fence(connection, site.places, image).withdrawn for image in fenced]
    tolerated = frozenset().union(*replaced) - people
    try:
        ended = promote(site, rules, reference, cause="erasure", tolerated=tolerated)
    except MlopsError as error:
        return Refusal((Reason("promotion-failed", error.message),))
    return ended if isinstance(ended, Refusal) else None


def _find_held(site: Site, state: DesiredState, product: str, people: frozenset[tuple[str, bytes]]) -> dict[str, str]:
    """Desired images that were trained on the batch's people, or on purged data."""
    fenced = find_fenced_desired(site, state, product)
    with site.ledger.read() as connection:
        fences = {image: find_fence(connection, site.places, image) for image in fenced}
    return {image: fenced[image] for image, it in fences.items() if it.problems or it.withdrawn & people}


def _serves_fenced(site: Site, rules: EnvironmentSpec, product: str, people: frozenset[tuple[str, bytes]]) -> bool:
    """Whether, as recorded, the batch's people still stand behind what gets traffic."""
    with site.ledger.read() as connection:
        rows = sql_deployments.load_deployments(connection, environment=rules.name, product=product, is_current=True)
        fenced = find_fenced_images(connection, site.places, (row.image for row in rows))
        fences = [find_fence(connection, site.places, image) for image in fenced]
    return any(fence.problems or fence.withdrawn & people for fence in fences)
