"""The graph of steps over digests: from a thing back to all it was made of, and forward to all that was made of it.

Leaves to others: whether what the graph says is true (verify.py), which version an environment serves (mlops/deploy).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.errors import ProvenanceError
from mlops.provenance.digest import DIGEST_PATTERN
from mlops.provenance.reference import Reference
from mlops.provenance.sql_steps import StepRecord, edges, find_steps, find_steps_of_digests

COMPARED_INPUTS = frozenset({"champion", "left", "reference"})
"""Inputs that a step looks at without taking anything of them into what it makes."""
ERASURE_PREFIX = "erasure"
"""Kinds of the steps that an erasure leaves begin with it."""


@dataclass(frozen=True)
class Lineage:
    """The part of the graph behind (or in front of) some digests."""

    starts: tuple[str, ...]
    steps: tuple[StepRecord, ...]
    """Each once, nearest to the starts first."""
    made_by: dict[tuple[str | None, str], str]
    """(consuming step, or None for a start; digest) to the step that made it. What nobody made came from outside."""

    def find_maker(self, digest: str, *, consumer: StepRecord | None) -> StepRecord | None:
        """The step that made what `consumer` (None: whoever asked) used."""
        step_id = self.made_by.get((consumer.step_id if consumer else None, digest))
        return next((step for step in self.steps if step.step_id == step_id), None)


def walk_back(connection: sa.Connection, starts: Iterable[str]) -> Lineage:
    """Every step that had a part in making `starts`.

    Of several steps that made the same bytes it is the last one before they were used.
    """
    wanted: list[tuple[StepRecord | None, str]] = [(None, digest) for digest in dict.fromkeys(starts)]
    first = tuple(digest for _, digest in wanted)
    found: dict[str, StepRecord] = {}
    made_by: dict[tuple[str | None, str], str] = {}
    while wanted:
        makers = find_steps_of_digests(connection, {digest for _, digest in wanted}, direction="out")
        fresh: list[StepRecord] = []
        for consumer, digest in wanted:
            maker = _choose_maker(makers.get(digest, ()), consumer)
            if maker is None:
                continue
            made_by[consumer.step_id if consumer else None, digest] = maker.step_id
            if maker.step_id not in found:
                found[maker.step_id] = maker
                fresh.append(maker)
        wanted = [(step, digest) for step in fresh for digest in step.inputs.values()]
    return Lineage(first, tuple(found.values()), made_by)


def walk_forward(connection: sa.Connection, starts: Iterable[str]) -> tuple[StepRecord, ...]:
    """Every step that used `starts`, or something made from them; nearest first."""
    found: dict[str, StepRecord] = {}
    frontier = set(starts)
    seen: set[str] = set()
    while frontier:
        seen |= frontier
        users = find_steps_of_digests(connection, frontier, direction="in")
        fresh = {step.step_id: step for steps in users.values() for step in steps if step.step_id not in found}
        found.update(fresh)
        frontier = {digest for step in fresh.values() for digest in step.outputs.values()} - seen
    return tuple(found.values())


def walk_carriers(connection: sa.Connection, manifests: Iterable[str]) -> tuple[StepRecord, ...]:
    """Every step whose outputs hold, or were learned from, rows of these dataset versions; nearest first.

    As `walk_forward`, but for three things: what a step only compares with (`COMPARED_INPUTS`) leaves no rows in it; a
    dataset version that was made from another holds whom its own index names, whatever it was made from; and the acts
    of an erasure name what they remove.
    """
    found: dict[str, StepRecord] = {}
    frontier = set(manifests)
    seen: set[str] = set()
    while frontier:
        seen |= frontier
        users = find_steps_of_digests(connection, frontier, direction="in")
        fresh = {
            step.step_id: step
            for steps in users.values()
            for step in steps
            if step.step_id not in found and is_carrier(step, seen)
        }
        found.update(fresh)
        frontier = {digest for step in fresh.values() for digest in carried_outputs(step)} - seen
    return tuple(found.values())


def is_carrier(step: StepRecord, holding: Collection[str]) -> bool:
    """Whether what a step made holds something of the digests in `holding`."""
    used = {digest for name, digest in step.inputs.items() if name not in COMPARED_INPUTS}
    return not step.kind.startswith(ERASURE_PREFIX) and not used.isdisjoint(holding)


def carried_outputs(step: StepRecord) -> frozenset[str]:
    """The outputs that hold what the step used: all but dataset versions."""
    return frozenset(digest for name, digest in step.outputs.items() if name != "manifest")


def find_starts(
    connection: sa.Connection, reference: Reference, *, find_served: Callable[[str], tuple[str, ...]]
) -> tuple[str, ...]:
    """The digests that a REF names.

    Args:
        connection: To the ledger.
        reference: What was asked for.
        find_served: Environment to the digests of the images it serves; raises for an unknown one.

    Raises:
        ProvenanceError: The ledger knows nothing of that name.
    """
    found = tuple(dict.fromkeys(_FINDERS[reference.kind](connection, reference))) if reference.kind in _FINDERS else ()
    if reference.kind == "environment":
        found = find_served(reference.name)
    if not found:
        raise ProvenanceError(
            f"nothing is known of {reference}", hint="`mlops status` shows the products, versions and environments"
        )
    return found


def _choose_maker(makers: Iterable[StepRecord], consumer: StepRecord | None) -> StepRecord | None:
    ordered = sorted(makers, key=lambda step: (step.finished_us, step.step_id), reverse=True)
    others = [step for step in ordered if consumer is None or step.step_id != consumer.step_id]
    before = [step for step in others if consumer is None or step.finished_us <= consumer.finished_us]
    return next(iter(before or others), None)


def _find_digest(connection: sa.Connection, reference: Reference) -> Iterator[str]:
    is_whole = DIGEST_PATTERN.fullmatch(reference.name)
    is_meant = edges.c.digest == reference.name if is_whole else edges.c.digest.startswith(reference.name)
    matches = list(connection.scalars(sa.select(edges.c.digest).where(is_meant).distinct().limit(2)))
    if len(matches) > 1:
        raise ProvenanceError(f"{reference} is the beginning of several digests", hint="write more digits")
    yield from matches


def _find_version(connection: sa.Connection, reference: Reference) -> Iterator[str]:
    for step in find_steps(connection, kind="registration", product=reference.name):
        is_meant = step.facts.get("number") == reference.number
        if reference.number is None:
            is_meant = reference.selector == step.facts.get("alias")
        if is_meant:
            yield step.outputs["version"]
            return


def _find_run(connection: sa.Connection, reference: Reference) -> Iterator[str]:
    for step in find_steps(connection, kind="sweep"):
        names = {step.facts.get("mlflow_run_id"), step.facts.get("sweep_id")}
        trials = step.facts.get("trials")
        if isinstance(trials, list):
            names |= {trial.get("mlflow_run_id") for trial in trials if isinstance(trial, dict)}
        if reference.name in names:
            yield from step.outputs.values()
            return


def _find_dataset(connection: sa.Connection, reference: Reference) -> Iterator[str]:
    wanted = reference.selector or ""
    for step in find_steps(connection, kind="dataset-import"):
        names = (step.outputs["manifest"], str(step.facts.get("dvc_digest")))
        if step.facts.get("dataset") == reference.name and any(name.startswith(wanted) for name in names):
            yield step.outputs["manifest"]
            return


def _find_commit(connection: sa.Connection, reference: Reference) -> Iterator[str]:
    for step in find_steps(connection):
        if str(step.facts.get("commit", "")).startswith(reference.name):
            yield from step.outputs.values()


_FINDERS: dict[str, Callable[[sa.Connection, Reference], Iterator[str]]] = {
    "digest": _find_digest,
    "version": _find_version,
    "run": _find_run,
    "dataset": _find_dataset,
    "commit": _find_commit,
}
