"""The way back from a thing to all it was made of, as a tree for people and as plain values.

Leaves to others: finding the steps (mlops/provenance/lineage.py) and checking them (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlops.clock import render_time
from mlops.datasets.version import load_dataset_version
from mlops.deploy.desired_state import desired_path, parse_desired
from mlops.deploy.environment import list_environments
from mlops.deploy.sql_deployments import load_deployments, load_desired
from mlops.errors import DatasetError, ProvenanceError
from mlops.project.opening import Project
from mlops.provenance.lineage import Lineage, find_starts, walk_back, walk_forward
from mlops.provenance.reference import Reference
from mlops.provenance.sql_steps import StepRecord

_TREE_FACTS = ("commit", "params", "seed", "metrics", "lease_ids", "sweep_id", "trial", "mlflow_run_id", "confinement")
"""Facts shown under a step, where it has them; `summary` stands on its line."""


@dataclass(frozen=True)
class Trace:
    """Everything behind a reference, and what was made from it."""

    reference: str
    lineage: Lineage
    used_by: tuple[StepRecord, ...]
    shards: Mapping[str, tuple[str, ...]]
    """Manifest digest to lines `path sha256:… rows`, or one line that says why they cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`: steps by id, and who made what."""
        return {
            "reference": self.reference,
            "starts": list(self.lineage.starts),
            "steps": [_step_json(step) for step in self.lineage.steps],
            "made_by": [
                {"consumer": consumer, "digest": digest, "step_id": step_id}
                for (consumer, digest), step_id in self.lineage.made_by.items()
            ],
            "shards": {digest: list(lines) for digest, lines in self.shards.items()},
            "used_by": [_step_json(step) for step in self.used_by],
        }


def trace_reference(project: Project, reference: Reference) -> Trace:
    """Look up a REF and walk both ways from it.

    Raises:
        ProvenanceError: Nothing is known of it.
    """
    with project.ledger.read() as connection:
        starts = find_starts(
            connection, reference, find_served=lambda environment: find_served_images(project, environment)
        )
        lineage = walk_back(connection, starts)
        used_by = walk_forward(connection, starts)
    imports = [step for step in lineage.steps if step.kind == "dataset-import"]
    shards = {step.outputs["manifest"]: _list_shards(project, step) for step in imports}
    return Trace(str(reference), lineage, used_by, shards)


def find_served_images(project: Project, environment: str) -> tuple[str, ...]:
    """Digests of the images that have a share of an environment's traffic; before the first reconcile the desired ones.

    Raises:
        ProvenanceError: No such environment, or nothing serves there or is desired.
    """
    known = list_environments(project.places)
    if environment not in known:
        raise ProvenanceError(
            f"there is no environment {environment!r}",
            hint=f"environments: {', '.join(known) or 'none'}; a version is written PRODUCT@NUMBER",
        )
    with project.ledger.read() as connection:
        rows = load_deployments(connection, environment=environment, is_current=True)
        desired = load_desired(connection, environment)
    if not rows and desired is not None:
        state = parse_desired(desired.content, source=desired_path(environment))
        return tuple(dict.fromkeys(version.image for release in state.products for version in release.versions))
    if not rows:
        raise ProvenanceError(f"nothing serves in {environment}", hint=f"`mlops promote PRODUCT@N --to {environment}`")
    return tuple(dict.fromkeys(row.image for row in rows))


def render_trace(trace: Trace, *, shown_shards: int = 5) -> str:
    """A tree: what was asked for at the top, what it was made of below; a step shown before is not unfolded again."""
    shown: set[str] = set()
    lines = [trace.reference]
    for number, digest in enumerate(trace.lineage.starts, start=1):
        is_last = number == len(trace.lineage.starts)
        maker = trace.lineage.find_maker(digest, consumer=None)
        lines.extend(
            _render_node(trace, "", digest, maker, "", is_last=is_last, shown=shown, shown_shards=shown_shards)
        )
    if trace.used_by:
        lines.append("used by")
        lines.extend(f"  {_render_step(step)}" for step in trace.used_by)
    return "\n".join(lines)


def _render_node(
    trace: Trace,
    name: str,
    digest: str,
    maker: StepRecord | None,
    indent: str,
    *,
    is_last: bool,
    shown: set[str],
    shown_shards: int,
) -> Iterator[str]:
    branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
    label = f"{name} " if name else ""
    is_repeat = maker is not None and maker.step_id in shown
    suffix = "" if maker is None else f"  ← {_render_step(maker)}" + ("  (see above)" if is_repeat else "")
    yield f"{indent}{branch}{label}{digest[:19]}{suffix}"
    if maker is None or is_repeat:
        return
    shown.add(maker.step_id)
    inner = indent + below
    yield from (f"{inner}·  {line}" for line in _render_facts(maker))
    shards = trace.shards.get(digest, ())
    yield from (f"{inner}·  shard {line}" for line in shards[:shown_shards])
    if len(shards) > shown_shards:
        yield f"{inner}·  … and {len(shards) - shown_shards} more shards (--shards shows all)"
    inputs = sorted(maker.inputs.items(), key=lambda item: trace.lineage.find_maker(item[1], consumer=maker) is None)
    for number, (child, child_digest) in enumerate(inputs, start=1):
        child_maker = trace.lineage.find_maker(child_digest, consumer=maker)
        yield from _render_node(
            trace,
            child,
            child_digest,
            child_maker,
            inner,
            is_last=number == len(inputs),
            shown=shown,
            shown_shards=shown_shards,
        )


def _render_step(step: StepRecord) -> str:
    summary = step.facts.get("summary") or step.facts.get("verdict") or ""
    return " ".join(part for part in (step.kind, str(summary), render_time(step.finished_us)) if part)


def _render_facts(step: StepRecord) -> Iterator[str]:
    for name in _TREE_FACTS:
        value = step.facts.get(name)
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}={_brief(part)}" for key, part in sorted(value.items()))
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        yield f"{name.replace('_', ' ')}: {value}"


def _brief(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _list_shards(project: Project, step: StepRecord) -> tuple[str, ...]:
    name, dvc_digest = str(step.facts.get("dataset")), str(step.facts.get("dvc_digest"))
    try:
        version = load_dataset_version(project.places, name, revision=dvc_digest)
    except DatasetError as error:
        return (f"list cannot be read: {error.message}",)
    return tuple(f"{shard.relpath} sha256:{shard.sha256} {shard.rows} rows" for shard in version.manifest.shards)


def _step_json(step: StepRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(step).items() if name != "envelope"}
    return {**fields, "is_signed": step.envelope is not None}
