"""Verifying a chain: signatures by accepted keys, digests recomputed where the bytes lie, events in their place.

One broken link breaks the chain, and the report names it. Bytes purged under an erasure certificate count as erased.
Leaves to others: where bytes lie (artefacts.py and upper rooms, as a table), whose keys count (mlops/deploy), and what
follows from a broken chain (promotion refuses, reconcile does not start).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa

from mlops.errors import ProvenanceError
from mlops.ledger.sql_events import find_broken_event, load_events
from mlops.provenance.digest import digest_inputs
from mlops.provenance.dsse import IN_TOTO_TYPE, parse_envelope
from mlops.provenance.keyring import KeyRing
from mlops.provenance.lineage import Lineage, walk_back
from mlops.provenance.sql_steps import StepRecord, load_edges
from mlops.provenance.statement import parse_statement

LinkStatus = Literal["verified", "recorded", "erased", "broken"]


@dataclass(frozen=True)
class FoundBytes:
    """What a loader found where an artefact should lie."""

    digest: str | None
    """Recomputed from the bytes; None when they are not there."""
    where: str
    """Path or other place, for messages."""
    is_needed: bool = True
    """Whether absent bytes break the chain; False for what may be thrown away (checkpoints, downloads)."""
    problem: str = ""
    """What is wrong inside, where the digest alone does not say it."""


Loader = Callable[[StepRecord, str], FoundBytes]
"""(step, digest) to what lies there; tables of loaders go by the name of an input or output: `candidate`, `image`, …"""

EXTERNAL_INPUTS = frozenset(
    {
        "budgets",
        "code",
        "deploy_spec",
        "export_as",
        "incidents",
        "lock",
        "policy",
        "recipe",
        "source",
        "spec",
        "tombstones",
        "trainer",
        "weights_as",
    }
)
"""Inputs that people write or that come from outside; every other input must be some step's output."""


@dataclass(frozen=True)
class Link:
    """One thing that was checked."""

    check: Literal["signature", "record", "event", "digest", "origin"]
    step_kind: str
    step_id: str
    name: str
    """Of the input or output; empty when the step as a whole is meant."""
    digest: str
    status: LinkStatus
    text: str
    """One sentence."""


@dataclass(frozen=True)
class ChainReport:
    """Every link of a chain."""

    starts: tuple[str, ...]
    links: tuple[Link, ...]

    @property
    def broken(self) -> tuple[Link, ...]:
        """Links that do not hold."""
        return tuple(link for link in self.links if link.status == "broken")

    @property
    def is_verified(self) -> bool:
        """Whether there is a chain and all of it holds."""
        return bool(self.links) and not self.broken

    def to_json(self) -> dict[str, Any]:
        """For `--json` and evidence."""
        return {
            "starts": list(self.starts),
            "is_verified": self.is_verified,
            "links": [vars(link) for link in self.links],
        }


@dataclass(frozen=True)
class ChainRules:
    """What a chain is held against."""

    keyring: KeyRing
    loaders: Mapping[str, Loader]
    """By name of input or output; digests of other names are what the signed statement says, no more."""
    required_kinds: frozenset[str] = frozenset()
    """Step kinds that the chain must contain."""
    external: frozenset[str] = EXTERNAL_INPUTS
    """Names of inputs that no step makes."""
    erased: Mapping[str, str] = field(default_factory=dict)
    """Digest to what its bytes were purged under: an erasure certificate, as people call it."""


def verify_chain(connection: sa.Connection, starts: Iterable[str], *, rules: ChainRules) -> ChainReport:
    """Check everything that `starts` were made by and of, and the ledger's event chain."""
    lineage = walk_back(connection, starts)
    events = _finished_events(connection)
    links: list[Link] = [*_check_origin(lineage, rules), *_check_event_chain(connection)]
    missing = sorted(rules.required_kinds - {step.kind for step in lineage.steps})
    links += [Link("origin", kind, "", "", "", "broken", f"the chain has no {kind} step") for kind in missing]
    checked: set[tuple[str, str]] = set()
    for step in lineage.steps:
        links.append(_check_signature(step, rules.keyring))
        links.append(_check_record(step, load_edges(connection, step.step_id)))
        links.append(_check_event(step, events.get(step.step_id)))
        links.extend(_check_digests(step, rules, lineage, checked))
    return ChainReport(lineage.starts, tuple(links))


def _check_origin(lineage: Lineage, rules: ChainRules) -> Iterator[Link]:
    """Nothing comes from nowhere."""
    for digest in lineage.starts:
        if (None, digest) not in lineage.made_by:
            yield Link("origin", "", "", "", digest, "broken", f"no recorded step made {digest}")
    for step in lineage.steps:
        for name, digest in step.inputs.items():
            if name not in rules.external and (step.step_id, digest) not in lineage.made_by:
                text = f"no recorded step made the {name} {digest} that {step.kind} used"
                yield Link("origin", step.kind, step.step_id, name, digest, "broken", text)


def _check_event_chain(connection: sa.Connection) -> Iterator[Link]:
    number = find_broken_event(connection)
    if number is not None:
        yield Link(
            "event", "ledger", "", "", "", "broken", f"event {number} of the ledger does not follow from those before"
        )


def _finished_events(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    return {event.subject: event.body for event in load_events(connection, kind_prefix="step.finished")}


def _check_signature(step: StepRecord, keyring: KeyRing) -> Link:
    """The envelope is whole, signed by accepted keys only, and says what the ledger's row says."""
    problem = ""
    signers: tuple[str, ...] = ()
    try:
        if step.envelope is None:
            raise ProvenanceError("the step carries no attestation")
        envelope = parse_envelope(step.envelope)
        signers = envelope.valid_signers()
        stated = parse_statement(envelope.payload, envelope=step.envelope)
        objections = [keyring.find_objection(signer, signed_us=stated.finished_us) for signer in signers]
        texts = [objection.text for objection in objections if objection]
        if envelope.payload_type != IN_TOTO_TYPE:
            problem = f"the payload is {envelope.payload_type}, not {IN_TOTO_TYPE}"
        elif not signers:
            problem = "a signature does not fit the statement: one of them was changed"
        elif texts:
            problem = "; ".join(texts)
        elif stated != step:
            problem = f"the ledger's row differs from the signed statement in {', '.join(_differences(stated, step))}"
    except ProvenanceError as error:
        problem = error.message
    owners = ", ".join(keyring.find_owner(signer) or signer for signer in signers)
    return _link("signature", step, text=problem or f"signed by {owners}", is_broken=bool(problem))


def _check_record(step: StepRecord, named: dict[str, dict[str, str]]) -> Link:
    """Memo key and edges follow from the record."""
    problem = ""
    if step.memo_key != digest_inputs(step.inputs):
        problem = "the memo key is not the digest of the inputs"
    elif named != {"in": step.inputs, "out": step.outputs}:
        problem = "the graph's edges differ from the step's inputs and outputs"
    return _link("record", step, text=problem or "edges and memo key agree", is_broken=bool(problem))


def _check_event(step: StepRecord, body: dict[str, Any] | None) -> Link:
    problem = ""
    if body is None:
        problem = "the event log has no entry for this step"
    elif body.get("outputs") != step.outputs or body.get("kind") != step.kind:
        problem = "the event log tells of other outputs"
    return _link("event", step, text=problem or "in the event log", is_broken=bool(problem))


def _check_digests(
    step: StepRecord, rules: ChainRules, lineage: Lineage, checked: set[tuple[str, str]]
) -> Iterator[Link]:
    """What the step made, and what it used that no step made; the rest is checked where it was made."""
    external = {name: it for name, it in step.inputs.items() if (step.step_id, it) not in lineage.made_by}
    for name, digest in [*step.outputs.items(), *external.items()]:
        loader = rules.loaders.get(name)
        if loader is None or (name, digest) in checked:
            continue
        checked.add((name, digest))
        link = replace(_link("digest", step, text="", is_broken=False), name=name, digest=digest)
        yield _judge(link, loader(step, digest), certificate=rules.erased.get(digest))


def _judge(link: Link, found: FoundBytes, *, certificate: str | None) -> Link:
    if found.digest == link.digest and not found.problem:
        return replace(link, text=f"recomputed at {found.where}")
    if found.digest is None and certificate is not None:
        return replace(link, status="erased", text=f"purged under {certificate}")
    if found.digest is None and not found.is_needed:
        return replace(link, status="recorded", text=found.problem or f"not kept at {found.where}")
    reason = found.problem or ("is not there" if found.digest is None else f"has digest {found.digest}")
    return replace(link, status="broken", text=f"{link.name} at {found.where}: {reason}, not {link.digest}")


def _link(
    check: Literal["signature", "record", "event", "digest"], step: StepRecord, *, text: str, is_broken: bool
) -> Link:
    return Link(check, step.kind, step.step_id, "", "", "broken" if is_broken else "verified", text)


def _differences(stated: StepRecord, step: StepRecord) -> list[str]:
    mine, theirs = vars(step), vars(stated)
    return sorted(name for name in mine if mine[name] != theirs[name])
