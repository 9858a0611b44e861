"""The facts of `mlops report PRODUCT`: what serves where, why, what changed, who is concerned, what is open.

Everything is read from the ledger, signed steps and kept gate results; nothing is judged anew.
Leaves to others: words and layout for people (report_page.py), what stands open above (open_matters.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mlops.deploy.admission import PROMOTION_STEP, ROLLBACK_STEP
from mlops.deploy.approval import read_approval
from mlops.deploy.consumer import load_consumers
from mlops.deploy.environment import EnvironmentSpec, list_environments, load_environment
from mlops.deploy.proxy_haproxy import find_outage
from mlops.deploy.roles import load_roles
from mlops.deploy.sql_deployments import (
    DeploymentRow,
    load_approval_envelopes,
    load_barred,
    load_deployments,
)
from mlops.errors import EvaluationError
from mlops.evaluation.store import load_kept
from mlops.overview.open_matters import ErasureDeadlines, OpenIncident, OpenMatters
from mlops.overview.waiting import WaitingLine, find_waiting
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import hex_of
from mlops.provenance.lineage import walk_back
from mlops.provenance.sql_steps import StepRecord, find_newest_steps, find_steps

_HISTORY = 12
"""Moves of environments that are shown."""


@dataclass(frozen=True)
class VersionFacts:
    """One version: what it was made of and what the gate said."""

    number: int
    image: str
    registered_us: int
    gate: dict[str, Any] | None
    """The kept result; None when it is no longer here."""
    params: dict[str, Any]
    rows: int | None
    """Of the dataset version."""
    manifest: str
    commit: str
    trials: int | None


@dataclass(frozen=True)
class ApprovalFacts:
    """One person's yes that counts as far as key, person and role tell."""

    person: str
    environment: str
    at_us: int
    reason: str


@dataclass(frozen=True)
class MoveFacts:
    """One time an environment was moved."""

    environment: str
    number: int
    cause: str
    """`promote`, `rollback`, `automatic-return`, `erasure`."""
    why: str
    at_us: int
    checklist: tuple[tuple[str, str], ...]
    approvers: tuple[str, ...]
    image: str


@dataclass(frozen=True)
class ConsumerLine:
    """One service that calls the product."""

    service: str
    release: str
    environments: tuple[str, ...]


@dataclass(frozen=True)
class FailedLine:
    """One image that failed somewhere and was taken out."""

    environment: str
    number: int | None
    at_us: int
    why: str


@dataclass(frozen=True)
class Report:
    """The whole page as values."""

    product: str
    now_us: int
    environments: tuple[EnvironmentSpec, ...]
    serving: tuple[DeploymentRow, ...]
    main: str | None
    """The environment that the page is about: of those that serve, the one that asks for most approvals."""
    version: VersionFacts | None
    """What serves most there; the newest release where nothing serves; None before the first release."""
    previous: VersionFacts | None
    """What served there before it, or the release before it."""
    approvals: tuple[ApprovalFacts, ...]
    entry: MoveFacts | None
    """How the version came in there."""
    moves: tuple[MoveFacts, ...]
    consumers: tuple[ConsumerLine, ...]
    failed: tuple[FailedLine, ...]
    waiting: tuple[WaitingLine, ...]
    incidents: tuple[OpenIncident, ...]
    erasures: tuple[ErasureDeadlines, ...]
    outages: tuple[str, ...] = ()
    """Environments where this machine served and nothing answers until a reconcile."""


def load_report(project: Project, product: str, matters: OpenMatters) -> Report:
    """Read everything the page says.

    Raises:
        ProjectError: A project file has problems.
        LedgerError: The ledger cannot be read.
    """
    places, now_us = project.places, project.clock.now_us()
    rules = tuple(load_environment(places, name) for name in list_environments(places))
    rules = tuple(sorted(rules, key=lambda one: (-one.approvals.needed, one.name)))
    with project.ledger.read() as connection:
        serving = load_deployments(connection, product=product, is_current=True)
        here = {row.environment for row in serving}
        main = next((one.name for one in rules if one.name in here), None)
        versions = _load_versions(connection, places, product)
        version, previous = _choose_versions(connection, versions, serving, main=main, product=product)
        moves = _load_moves(connection, product)
        dataset = _find_dataset(connection, product)
        return Report(
            product=product,
            now_us=now_us,
            environments=rules,
            serving=serving,
            outages=tuple(name for name in sorted(here) if find_outage(places.serving_state / name / product)),
            main=main,
            version=version,
            previous=previous,
            approvals=_load_approvals(connection, places, rules, product, version, now_us=now_us),
            entry=_find_entry(moves, main, version),
            moves=moves[:_HISTORY],
            consumers=_load_consumers(places, rules, product),
            failed=_load_failed(connection, rules, versions),
            waiting=_load_waiting(connection, places, product, serving, now_us=now_us),
            incidents=tuple(each for each in matters.incidents if each.product == product),
            erasures=tuple(each for each in matters.count_erasures(now_us) if each.dataset == dataset),
        )


def _load_versions(connection: sa.Connection, places: Places, product: str) -> tuple[VersionFacts, ...]:
    """Every version that has an image, newest first."""
    return tuple(
        _read_version(connection, places, step) for step in find_steps(connection, kind="image", product=product)
    )


def _read_version(connection: sa.Connection, places: Places, image: StepRecord) -> VersionFacts:
    steps = walk_back(connection, (image.outputs["image"],)).steps
    by_kind = {step.kind: step for step in reversed(steps)}  # the nearest of a kind stays
    registration, sweep, data = (by_kind.get(kind) for kind in ("registration", "sweep", "dataset-import"))
    try:
        gate = load_kept(places.evidence / hex_of(image.inputs["gate"]))
    except EvaluationError:
        gate = None
    return VersionFacts(
        number=int(image.facts.get("number") or (registration.facts["number"] if registration else 0)),
        image=image.outputs["image"],
        registered_us=registration.finished_us if registration else image.finished_us,
        gate=gate,
        params=dict(sweep.facts.get("params") or {}) if sweep else {},
        rows=data.facts.get("rows") if data else None,
        manifest=data.outputs["manifest"] if data else "",
        commit=str(sweep.facts.get("commit") or "") if sweep else "",
        trials=sweep.facts.get("trials") if sweep else None,
    )


def _choose_versions(
    connection: sa.Connection,
    versions: tuple[VersionFacts, ...],
    serving: tuple[DeploymentRow, ...],
    *,
    main: str | None,
    product: str,
) -> tuple[VersionFacts | None, VersionFacts | None]:
    by_image = {version.image: version for version in versions}
    if main is None:
        return next(iter(versions), None), next(iter(versions[1:]), None)
    here = max((row for row in serving if row.environment == main), key=lambda row: row.share)
    earlier = load_deployments(connection, environment=main, product=product)
    before = next((row for row in earlier if row.image != here.image and row.since_us < here.since_us), None)
    return by_image.get(here.image), by_image.get(before.image) if before else None


def _load_moves(connection: sa.Connection, product: str) -> tuple[MoveFacts, ...]:
    steps: Iterable[StepRecord] = (
        step for kind in (PROMOTION_STEP, ROLLBACK_STEP) for step in find_steps(connection, kind=kind, product=product)
    )
    return tuple(
        MoveFacts(
            environment=str(step.facts["environment"]),
            number=int(step.facts["number"]),
            cause=str(step.facts.get("cause", "")),
            why=str(step.facts.get("why", "")),
            at_us=step.finished_us,
            checklist=tuple((str(code), str(text)) for code, text in step.facts.get("checklist", ())),
            approvers=tuple(step.facts.get("approvers", ())),
            image=step.inputs["image"],
        )
        for step in sorted(steps, key=lambda step: step.finished_us, reverse=True)
    )


def _find_entry(moves: tuple[MoveFacts, ...], main: str | None, version: VersionFacts | None) -> MoveFacts | None:
    """The newest promotion of the version there."""
    if version is None:
        return None
    return next(
        (move for move in moves if move.environment == main and move.image == version.image and move.checklist), None
    )


def _load_approvals(
    connection: sa.Connection,
    places: Places,
    rules: tuple[EnvironmentSpec, ...],
    product: str,
    version: VersionFacts | None,
    *,
    now_us: int,
) -> tuple[ApprovalFacts, ...]:
    roles = load_roles(places)
    found: dict[tuple[str, str], ApprovalFacts] = {}
    for one in rules:
        for text in load_approval_envelopes(connection, product=product, environment=one.name):
            signed = read_approval(text, roles=roles, role=one.approvals.role, now_us=now_us)
            approval = signed.approval
            if signed.problem or approval is None or signed.person is None or version is None:
                continue
            if approval.image == version.image:
                key = (one.name, signed.person)
                found[key] = ApprovalFacts(signed.person, one.name, approval.issued_us, approval.reason)
    return tuple(found.values())


def _load_consumers(places: Places, rules: tuple[EnvironmentSpec, ...], product: str) -> tuple[ConsumerLine, ...]:
    found: dict[tuple[str, str], list[str]] = {}
    for one in rules:
        for consumer in load_consumers(places, product=product, environment=one.name):
            found.setdefault((consumer.service, consumer.release), []).append(one.name)
    return tuple(ConsumerLine(service, release, tuple(names)) for (service, release), names in sorted(found.items()))


def _load_failed(
    connection: sa.Connection, rules: tuple[EnvironmentSpec, ...], versions: tuple[VersionFacts, ...]
) -> tuple[FailedLine, ...]:
    """Images of this product that are barred."""
    numbers = {version.image: version.number for version in versions}
    return tuple(
        FailedLine(one.name, numbers[row.image], row.at_us, row.why)
        for one in rules
        for row in load_barred(connection, one.name).values()
        if row.image in numbers
    )


def _load_waiting(
    connection: sa.Connection, places: Places, product: str, serving: tuple[DeploymentRow, ...], *, now_us: int
) -> tuple[WaitingLine, ...]:
    newest = find_newest_steps(connection, product=product)
    registration, image = newest.get("registration"), newest.get("image")
    number = int(registration.facts["number"]) if registration else None
    return find_waiting(
        connection,
        places,
        latest={product: (number, image.outputs["image"] if image else None)},
        serving={(row.environment, row.product): row.number for row in serving},
        now_us=now_us,
    )


def _find_dataset(connection: sa.Connection, product: str) -> str:
    """What the product is trained on, as its last release had it."""
    step = find_newest_steps(connection, product=product).get("dataset-import")
    return str(step.facts.get("dataset") or product) if step else product
