"""What a release was made of, read from its signed statements alone: enough to make it again.

Leaves to others: making it again (rebuild_worker.py) and the clean place (rebuild.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlops.errors import ProvenanceError
from mlops.provenance.dsse import parse_envelope
from mlops.provenance.keyring import KeyRing
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.statement import parse_statement

_NEEDED = ("dataset-import", "source-check", "sweep", "export", "gate", "registration", "image")


@dataclass(frozen=True)
class RebuildPlan:
    """A release to be made again."""

    product: str
    number: int
    commit: str
    is_dirty: bool
    """Whether files were uncommitted when it was made; then the commit alone may not give it."""
    dataset: str
    dvc_digest: str
    params: dict[str, Any]
    seed: int
    trial: int
    sweep_id: str
    gate: str
    recorded: dict[str, str]
    """Name to digest: `trainer`, `spec`, `lock`, `manifest`, `weights`, `candidate`, `image`, `code of …`."""

    def to_json(self) -> dict[str, Any]:
        """For the process that rebuilds."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One digest, then and now."""

    name: str
    recorded: str
    rebuilt: str
    """Empty when it was not made again."""

    @property
    def is_equal(self) -> bool:
        """Whether it came out the same."""
        return self.recorded == self.rebuilt


def find_newest_image(steps: Iterable[StepRecord]) -> StepRecord | None:
    """The image of a version that promotion takes too: a newer `mlops` may have built it anew."""
    images = [step for step in steps if step.kind == "image"]
    return max(images, key=lambda step: (step.finished_us, step.step_id), default=None)


def read_signed_steps(steps: Iterable[StepRecord], *, keyring: KeyRing) -> dict[str, StepRecord]:
    """Kind to the record that its envelope speaks of; nothing is taken from the ledger's columns.

    Raises:
        ProvenanceError: An attestation is missing, damaged, or signed by a key that does not count.
    """
    found: dict[str, StepRecord] = {}
    for step in steps:
        if step.envelope is None:
            raise ProvenanceError(f"the {step.kind} step {step.step_id} carries no attestation")
        envelope = parse_envelope(step.envelope)
        stated = parse_statement(envelope.payload, envelope=step.envelope)
        signers = envelope.valid_signers()
        objections = [keyring.find_objection(signer, signed_us=stated.finished_us) for signer in signers]
        if not signers or any(objections):
            why = "; ".join(it.text for it in objections if it) or "its signature does not fit"
            raise ProvenanceError(f"the attestation of {step.kind} does not count: {why}", hint="mlops audit verify")
        found.setdefault(stated.kind, stated)
    return found


def plan_rebuild(signed: Mapping[str, StepRecord]) -> RebuildPlan:
    """Everything that is needed, from the steps of one chain.

    Raises:
        ProvenanceError: A step or a fact is missing.
    """
    missing = [kind for kind in _NEEDED if kind not in signed]
    if missing:
        raise ProvenanceError(f"the chain has no {', '.join(missing)} step", hint="only a whole release can be rebuilt")
    sweep, data, source = signed["sweep"], signed["dataset-import"], signed["source-check"]
    if sweep.facts.get("members"):
        raise ProvenanceError(
            f"{sweep.product} is an ensemble of {sweep.facts['members']} isolated members (`isolation:`): a rebuild "
            "trains one trial again, not members slice by slice",
            hint="release it in a fresh clone of its commit: its members are trained to the same bits",
        )
    recorded: dict[str, str] = {
        name: sweep.inputs[name] for name in ("trainer", "spec", "lock") if name in sweep.inputs
    }
    recorded |= {"manifest": data.outputs["manifest"], "weights": sweep.outputs["weights"]}
    recorded |= {"candidate": signed["export"].outputs["candidate"], "image": signed["image"].outputs["image"]}
    recorded["deploy_spec"] = signed["image"].inputs["deploy_spec"]
    recorded |= {f"code of {kind}": signed[kind].inputs["code"] for kind in ("sweep", "export", "image")}
    try:
        return RebuildPlan(
            product=sweep.product,
            number=int(signed["registration"].facts["number"]),
            commit=str(source.facts["commit"]),
            is_dirty=bool(source.facts.get("is_dirty", False)),
            dataset=str(data.facts["dataset"]),
            dvc_digest=str(data.facts["dvc_digest"]),
            params=dict(sweep.facts["params"]),
            seed=int(sweep.facts["seed"]),
            trial=int(sweep.facts["trial"]),
            sweep_id=str(sweep.facts["sweep_id"]),
            gate=signed["gate"].outputs["gate"],
            recorded=recorded,
        )
    except KeyError as error:
        raise ProvenanceError(f"an attestation lacks the fact {error}", hint="it was made by another mlops") from error


def compare_rebuild(plan: RebuildPlan, rebuilt: Mapping[str, str]) -> tuple[Comparison, ...]:
    """Every recorded digest beside what came out now, ingredients first."""
    return tuple(Comparison(name, digest, rebuilt.get(name, "")) for name, digest in plan.recorded.items())
