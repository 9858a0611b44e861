"""Who is affected by a withdrawal: person → group → shards → versions → trials → models → images → environments.

A query over the lineage graph, completed by what lies on disk without a finished step (a stopped sweep, a refused
candidate, an image built by hand). Leaves to others: the graph (mlops/provenance/lineage.py), removing (purging.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from mlops.datasets.history import list_versions
from mlops.datasets.manifest import Shard
from mlops.datasets.subject_index import count_rows, load_subjects
from mlops.datasets.subjects import group_of
from mlops.datasets.tombstones import load_purged
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.deploy import sql_deployments
from mlops.deploy.desired_state import parse_desired
from mlops.errors import DatasetError
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import hex_of
from mlops.provenance.lineage import walk_carriers
from mlops.provenance.sql_steps import StepRecord
from mlops.serving.image_build import ANNOTATION
from mlops.serving.oci_layout import ImageLayout
from mlops.training.sql_trials import list_sweeps, list_trials

_NOT_MEASURED = frozenset({"candidate", "image", "version", "manifest", "desired"})

Role = Literal["serves", "rollback", "earlier"]


@dataclass(frozen=True)
class AffectedShard:
    """A shard of one dataset version that holds, or held until it was purged, one of the people."""

    manifest: str
    """`sha256:…` of the dataset version."""
    shard: Shard
    rows: int | None
    """Rows of these people in it; None when it was purged before: then it is known by its group only."""


@dataclass(frozen=True)
class AffectedSweep:
    """A sweep whose trials were trained on one of the people."""

    sweep_id: str
    run_id: str
    """MLflow's run of the sweep itself; empty when it has none."""


@dataclass(frozen=True)
class AffectedTrial:
    """One trial of a sweep that was trained on one of the people."""

    sweep_id: str
    number: int
    run_id: str
    """MLflow's run."""


@dataclass(frozen=True)
class AffectedModel:
    """A registered model version."""

    product: str
    number: int
    candidate: str
    digest: str
    """Of the version, as its registration recorded it."""


@dataclass(frozen=True)
class AffectedPlace:
    """An image that an environment serves, would go back to, or served earlier."""

    environment: str
    product: str
    number: int
    image: str
    role: Role


@dataclass(frozen=True)
class Affected:
    """Everything that holds people, or was learned from their rows."""

    dataset: str
    subjects: frozenset[bytes] = field(repr=False)
    """Keyed hashes of the people, 32 bytes each."""
    shards: tuple[AffectedShard, ...]
    manifests: tuple[str, ...]
    """Dataset versions."""
    sweeps: tuple[AffectedSweep, ...]
    trials: tuple[AffectedTrial, ...]
    candidates: tuple[str, ...]
    evidence: tuple[str, ...]
    """What was measured on their rows or on models that learned from them: gate results, and others like them."""
    models: tuple[AffectedModel, ...]
    images: tuple[str, ...]
    environments: tuple[AffectedPlace, ...]
    steps: tuple[str, ...]
    """Ids of the recorded steps that lead from the versions to all this."""

    @property
    def rows(self) -> int:
        """Rows of these people that can still be read, each once, however many versions share its shard."""
        return sum({found.shard.sha256: found.rows or 0 for found in self.shards}.values())

    def serving(self) -> tuple[AffectedPlace, ...]:
        """Where such an image has traffic by the desired state."""
        return tuple(place for place in self.environments if place.role == "serves")


def find_affected(project: Project, dataset: str, subjects: frozenset[bytes], *, is_cautious: bool = False) -> Affected:
    """All that holds these people or was made from versions that do.

    A shard that was purged no longer says whom it held; it counts when it is of a person's group. So the answer stays
    the same while a purge is under way, and after it.

    Args:
        project: An open project.
        dataset: Its name.
        subjects: Keyed hashes, 32 bytes each.
        is_cautious: Whether an old version whose shards cannot be read counts as holding them, instead of an error.

    Raises:
        DatasetError: A shard in question is missing without having been purged, or changed.
    """
    shards = tuple(_find_shards(project.places, dataset, subjects, is_cautious=is_cautious))
    manifests = tuple(dict.fromkeys(shard.manifest for shard in shards))
    return trace_versions(project, dataset, manifests, shards=shards, subjects=subjects)


def trace_versions(
    project: Project,
    dataset: str,
    manifests: tuple[str, ...],
    *,
    shards: tuple[AffectedShard, ...] = (),
    subjects: frozenset[bytes] = frozenset(),
) -> Affected:
    """All that was made from some versions of a dataset, on record or on disk.

    Raises:
        ProjectError: A desired state in the ledger cannot be read.
    """
    holding = set(manifests)
    with project.ledger.read() as connection:
        steps = walk_carriers(connection, manifests)
        sweeps = [row for row in list_sweeps(connection) if row.inputs.get("manifest") in holding]
        trials = [(row.sweep_id, trial) for row in sweeps for trial in list_trials(connection, row.sweep_id)]
        candidates = tuple(dict.fromkeys((*_outputs(steps, "candidate"), *_find_candidates(project.places, holding))))
        images = tuple(
            dict.fromkeys((*_outputs(steps, "image"), *_find_images(project.places, holding | {*candidates})))
        )
        environments = tuple(_find_environments(connection, set(images)))
    evidence = (*_find_kept_evidence(project.places, steps), *_find_results(project.places, set(candidates)))
    return Affected(
        dataset=dataset,
        subjects=subjects,
        shards=shards,
        manifests=manifests,
        sweeps=tuple(AffectedSweep(row.sweep_id, row.mlflow_run_id) for row in sweeps),
        trials=tuple(AffectedTrial(sweep_id, trial.number, trial.mlflow_run_id) for sweep_id, trial in trials),
        candidates=candidates,
        evidence=tuple(dict.fromkeys(evidence)),
        models=tuple(_to_model(step) for step in steps if step.kind == "registration"),
        images=images,
        environments=environments,
        steps=tuple(step.step_id for step in steps),
    )


def _find_shards(
    places: Places, dataset: str, subjects: frozenset[bytes], *, is_cautious: bool
) -> Iterator[AffectedShard]:
    purged = load_purged(places, dataset)
    pinned = find_pinned(places, dataset) if is_cautious else None
    kept = frozenset(shard.md5 for shard in pinned.manifest.shards) if pinned is not None else frozenset()
    for version in list_versions(places, dataset):
        for shard, wanted in _shards_of_groups(version, subjects):
            if shard.md5 in purged:
                yield AffectedShard(version.digest, shard, None)
                continue
            try:
                held = load_subjects(places, version, shard)
            except DatasetError:
                if not is_cautious:
                    raise
                if shard.md5 not in kept:  # the pinned version's shards hold nobody who left it
                    yield AffectedShard(version.digest, shard, None)
                continue
            rows = sum(count_rows(held, subject) for subject in wanted)
            if rows:
                yield AffectedShard(version.digest, shard, rows)


def find_pinned(places: Places, dataset: str) -> DatasetVersion | None:
    """The pinned version; None when its manifest is in no store, as in a clone that has not imported yet."""
    try:
        return load_dataset_version(places, dataset)
    except DatasetError:
        return None


def _shards_of_groups(version: DatasetVersion, subjects: Iterable[bytes]) -> Iterator[tuple[Shard, list[bytes]]]:
    """Shards in which any of the people can be, with those who can."""
    by_group: dict[int, list[bytes]] = {}
    for subject in sorted(subjects):
        by_group.setdefault(group_of(subject, groups=version.schema.groups), []).append(subject)
    for shard in version.manifest.shards:
        if shard.group in by_group:
            yield shard, by_group[shard.group]


def _outputs(steps: Iterable[StepRecord], name: str) -> Iterator[str]:
    return (step.outputs[name] for step in steps if name in step.outputs)


def _to_model(step: StepRecord) -> AffectedModel:
    return AffectedModel(step.product, int(step.facts["number"]), step.inputs["candidate"], step.outputs["version"])


def _find_candidates(places: Places, manifests: Collection[str]) -> Iterator[str]:
    """Candidates on disk whose contract names one of the versions, also those that no step recorded."""
    for path in sorted(places.candidates.glob("*/contract.json")):
        dataset = _read_json(path.read_bytes()).get("dataset") or {}
        if dataset.get("digest") in manifests:
            yield f"sha256:{path.parent.name}"


def _find_images(places: Places, holding: Collection[str]) -> Iterator[str]:
    """Images in the layout whose annotations name one of the digests, also those that were built by hand."""
    layout = ImageLayout(places.images)
    for digest in dict.fromkeys(image.digest for image in layout.images()):
        if not layout.has_blob(digest):
            continue
        annotations = _read_json(layout.read_blob(digest)).get("annotations") or {}
        named = {value for name, value in annotations.items() if name.startswith(f"{ANNOTATION}evidence.")}
        if not named.isdisjoint(holding):
            yield digest


def _find_kept_evidence(places: Places, steps: Iterable[StepRecord]) -> Iterator[str]:
    """Outputs that lie in the evidence folder; a probe's golden requests are made from the contract, not from rows."""
    for step in steps:
        for name, digest in step.outputs.items():
            is_measured = step.kind != "probe" and name not in _NOT_MEASURED
            if is_measured and (name == "gate" or (places.evidence / hex_of(digest)).is_dir()):
                yield digest


def _find_results(places: Places, candidates: Collection[str]) -> Iterator[str]:
    """Gate results about the candidates, also those of a no-go, which no step records."""
    for path in sorted(places.evidence.glob("*/gate.json")):
        if _read_json(path.read_bytes()).get("candidate") in candidates:
            yield f"sha256:{path.parent.name}"


def _find_environments(connection: sa.Connection, images: Collection[str]) -> Iterator[AffectedPlace]:
    for environment in sql_deployments.list_environments(connection):
        named: set[tuple[str, str]] = set()
        for place in _list_places(connection, environment):
            if place.image in images and (place.product, place.image) not in named:
                named.add((place.product, place.image))
                yield place


def _list_places(connection: sa.Connection, environment: str) -> Iterator[AffectedPlace]:
    """What serves, then what a rollback goes to, then what served once."""
    row = sql_deployments.load_desired(connection, environment)
    releases = parse_desired(row.content, source=environment).products if row is not None else ()
    for release in releases:
        for version in release.versions:
            yield AffectedPlace(environment, release.product, version.number, version.image, "serves")
    for release in releases:
        good = release.last_known_good
        if good is not None:
            yield AffectedPlace(environment, release.product, good.number, good.image, "rollback")
    for past in sql_deployments.load_deployments(connection, environment=environment):
        yield AffectedPlace(environment, past.product, past.number, past.image, "earlier")


def _read_json(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
