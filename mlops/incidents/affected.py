"""Which versions and environments a wrong answer concerns: the lineage graph says what is related, each model is asked.

Leaves to others: what to do about it (planning.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from mlops.deploy.desired_state import desired_path, parse_desired
from mlops.deploy.environment import list_environments
from mlops.deploy.sql_deployments import load_deployments, load_desired
from mlops.errors import ProjectError, ProvenanceError
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.overview.trace import find_served_images
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import hex_of
from mlops.provenance.lineage import find_starts, walk_back
from mlops.provenance.reference import parse_reference
from mlops.provenance.sql_steps import StepRecord, find_steps, find_steps_of_digest
from mlops.training.candidate import Candidate, load_candidate

Role = Literal["serves", "desired", "way back"]


@dataclass(frozen=True)
class Version:
    """One registered version of a product."""

    number: int
    candidate: str
    gate: str
    """Digest of the gate's result."""
    images: tuple[str, ...]


@dataclass(frozen=True)
class AffectedVersion:
    """A version that answers wrongly, or that could not be asked."""

    number: int
    images: tuple[str, ...]
    is_asked: bool
    """False: its model is no longer here, so nobody knows."""


@dataclass(frozen=True)
class AffectedEnvironment:
    """Where an affected version is."""

    environment: str
    number: int
    image: str
    role: Role


@dataclass(frozen=True)
class Affected:
    """All that is concerned."""

    versions: tuple[AffectedVersion, ...]
    environments: tuple[AffectedEnvironment, ...]

    @property
    def images(self) -> frozenset[str]:
        """Images of affected versions."""
        return frozenset(image for version in self.versions for image in version.images)

    def to_json(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {
            "versions": [asdict(version) for version in self.versions],
            "environments": [asdict(entry) for entry in self.environments],
        }


def find_candidate(connection: sa.Connection, starts: tuple[str, ...], *, product: str | None) -> StepRecord:
    """The export step of the candidate behind digests of images, versions or candidates; the newest one of `product`.

    Raises:
        ProvenanceError: There is none, or several products are behind them and none was named.
    """
    exports = [step for start in starts for step in walk_back(connection, (start,)).steps if step.kind == "export"]
    chosen = [step for step in exports if product in (None, step.product)]
    products = sorted({step.product for step in exports})
    if not chosen:
        known = f"; behind it are {', '.join(products)}" if products else ""
        raise ProvenanceError(
            f"no model of {product or 'any product'} is behind it{known}", hint="write PRODUCT@NUMBER"
        )
    if product is None and len(products) > 1:
        raise ProvenanceError(f"models of {', '.join(products)} are behind it", hint="say which with --product NAME")
    return max(chosen, key=lambda step: step.finished_us)


def find_model(project: Project, reference: str, *, product: str | None) -> Candidate:
    """The candidate behind a REF: the model that answered.

    Raises:
        ProvenanceError: Nothing is known of the reference.
        ProjectError: The model's folder is gone.
    """
    with project.ledger.read() as connection:
        starts = find_starts(
            connection,
            parse_reference(reference),
            find_served=lambda environment: find_served_images(project, environment),
        )
        step = find_candidate(connection, starts, product=product)
    folder = project.places.candidates / hex_of(step.outputs["candidate"])
    if not folder.is_dir():
        raise ProjectError(
            f"the model behind {reference} is no longer here, so it cannot be asked again",
            hint=f"`mlops release {step.product}` makes it again from the weights",
        )
    return load_candidate(folder)


def list_versions(connection: sa.Connection, product: str) -> tuple[Version, ...]:
    """Registered versions of a product, oldest first."""
    found: dict[int, Version] = {}
    for step in find_steps(connection, kind="registration", product=product, newest_first=False):
        images = tuple(
            user.outputs["image"]
            for user in find_steps_of_digest(connection, step.outputs["version"], direction="in")
            if user.kind == "image"
        )
        number = int(step.facts["number"])
        found[number] = Version(number, step.inputs["candidate"], step.inputs["gate"], images)
    return tuple(found[number] for number in sorted(found))


def find_affected(
    connection: sa.Connection,
    places: Places,
    product: str,
    *,
    is_wrong: Callable[[Candidate], bool],
) -> Affected:
    """Ask every version of the product that is still here, and find where those that answer wrongly are."""
    versions: list[AffectedVersion] = []
    for version in list_versions(connection, product):
        folder = places.candidates / hex_of(version.candidate)
        if not (folder / "contract.json").is_file():
            versions.append(AffectedVersion(version.number, version.images, is_asked=False))
            continue
        try:
            is_affected = is_wrong(load_candidate(folder))
        except NotEvaluableError:
            is_affected = False  # it takes other inputs, so it cannot answer this one wrongly
        if is_affected:
            versions.append(AffectedVersion(version.number, version.images, is_asked=True))
    known = frozenset(image for version in versions for image in version.images)
    return Affected(tuple(versions), find_environments(connection, places, images=known))


def find_environments(
    connection: sa.Connection, places: Places, *, images: frozenset[str]
) -> tuple[AffectedEnvironment, ...]:
    """Where any of these images serves, should serve, or is what a rollback goes to."""
    found: dict[tuple[str, str], AffectedEnvironment] = {}

    def note(environment: str, number: int, image: str, role: Role) -> None:
        if image in images:
            found.setdefault((environment, image), AffectedEnvironment(environment, number, image, role))

    for name in list_environments(places):
        for row in load_deployments(connection, environment=name, is_current=True):
            note(name, row.number, row.image, "serves")
        desired = load_desired(connection, name)
        if desired is None:
            continue
        for release in parse_desired(desired.content, source=desired_path(name)).products:
            for version in release.versions:
                note(name, version.number, version.image, "desired")
            if release.last_known_good is not None:
                note(name, release.last_known_good.number, release.last_known_good.image, "way back")
    return tuple(found.values())
