"""What waits for whom: versions that could serve and do not, decisions not yet in git, open erasure requests.

Leaves to others: the full checklist of a promotion (mlops/deploy/promotion.py); here only what a person should look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.deploy.approval import read_approval
from mlops.deploy.desired_state import desired_path, parse_desired
from mlops.deploy.environment import EnvironmentSpec, list_environments, load_environment
from mlops.deploy.roles import RolesSpec, load_roles
from mlops.deploy.sql_deployments import load_approval_envelopes, load_barred, load_desired
from mlops.places import Places


@dataclass(frozen=True)
class WaitingLine:
    """One thing that waits."""

    what: str
    for_whom: str
    next_step: str
    """Command."""


def find_waiting(
    connection: sa.Connection,
    places: Places,
    *,
    latest: Mapping[str, tuple[int | None, str | None]],
    serving: Mapping[tuple[str, str], int],
    now_us: int,
) -> tuple[WaitingLine, ...]:
    """Everything that waits, environments in their order.

    Args:
        connection: To the ledger.
        places: The project.
        latest: Product to number and image digest of its newest version.
        serving: (environment, product) to the number that serves.
        now_us: Decides which approvals still hold.

    Raises:
        ProjectError: An environment or `deploy/roles.yaml` has problems.
    """
    roles = load_roles(places)
    lines: list[WaitingLine] = []
    for name in list_environments(places):
        rules = load_environment(places, name)
        desired = _load_desired_numbers(connection, name)
        lines.extend(_find_uncommitted(connection, name))
        lines.extend(_find_unserved(name, desired, serving))
        barred = load_barred(connection, name)
        for product, (number, image) in latest.items():
            newest = max(serving.get((name, product), 0), desired.get(product, 0))
            is_newer = number is not None and number > newest
            is_next = rules.after is None or serving.get((rules.after, product), 0) == number
            if not is_newer or not is_next or product not in rules.traffic.ports:
                continue
            people = _find_approvers(connection, rules, roles, product=product, image=image, now_us=now_us)
            lines.append(_describe(product, number or 0, rules, people, is_barred=image in barred))
    return tuple(lines)


def _find_approvers(
    connection: sa.Connection, rules: EnvironmentSpec, roles: RolesSpec, *, product: str, image: str | None, now_us: int
) -> tuple[str, ...]:
    """People who approved this image here, as far as signature, key and role tell."""
    envelopes = load_approval_envelopes(connection, product=product, environment=rules.name)
    signed = [read_approval(text, roles=roles, role=rules.approvals.role, now_us=now_us) for text in envelopes]
    found = {
        it.person for it in signed if it.problem is None and it.approval and it.approval.image == image and it.person
    }
    return tuple(sorted(found))


def _describe(
    product: str, number: int, rules: EnvironmentSpec, people: tuple[str, ...], *, is_barred: bool
) -> WaitingLine:
    what = f"{product}@{number} for {rules.name}"
    missing = rules.approvals.needed - len(people)
    if is_barred:
        return WaitingLine(f"{what} (failed there before)", "a person", f"mlops deploy status {rules.name}")
    if missing > 0:
        told = f"{missing} more {rules.approvals.role}{'s' if missing > 1 else ''}"
        told += f" (has {', '.join(people)})" if people else ""
        return WaitingLine(what, told, f"mlops approve {product}@{number} --env {rules.name} --reason …")
    return WaitingLine(what, "someone who promotes it", f"mlops promote {product}@{number} --to {rules.name}")


def _find_uncommitted(connection: sa.Connection, environment: str) -> Iterator[WaitingLine]:
    desired = load_desired(connection, environment)
    if desired is not None and desired.commit_hash is None:
        yield WaitingLine(f"{desired.cause} in {environment} is not yet in git", "git", "mlops deploy reconcile")


def _load_desired_numbers(connection: sa.Connection, environment: str) -> dict[str, int]:
    """Product to the version that is desired in an environment."""
    row = load_desired(connection, environment)
    if row is None:
        return {}
    state = parse_desired(row.content, source=desired_path(environment))
    return {release.product: release.versions[0].number for release in state.products if release.versions}


def _find_unserved(
    environment: str, desired: Mapping[str, int], serving: Mapping[tuple[str, str], int]
) -> Iterator[WaitingLine]:
    for product, number in desired.items():
        if serving.get((environment, product)) != number:
            what = f"{product}@{number} is desired in {environment} and does not serve yet"
            yield WaitingLine(what, "a reconcile", f"mlops deploy reconcile {environment}")
