"""START HERE. A release, step by step: data, source check, sweep, export, gate, registration, image, probe.

Steps are memoised by their inputs' digests and leave a signed row (mlops/provenance/steps.py). A broken file or a step
that fails raises `MlopsError`; run again to go on from there.
Leaves to others: the work of each step (`step_*.py` of its room), promotion (mlops/deploy), and what starts a release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlops.datasets.step_import import import_step
from mlops.deploy.gate_signatures import open_verifier
from mlops.deploy.runtimes import choose_runtime
from mlops.errors import Refusal
from mlops.evaluation.step_gate import gate_step
from mlops.project.file_examination import require_product_files
from mlops.project.opening import Project
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepRun, Workbench
from mlops.registry.step_registration import registration_step
from mlops.serving.step_image import image_step
from mlops.serving.step_probe import probe_step
from mlops.training.spec import SweepSpec, load_sweep_spec
from mlops.training.step_export import export_step
from mlops.training.step_source import source_step
from mlops.training.step_sweep import SweepStepRequest, sweep_step


@dataclass
class Release:
    """A release on its way: what is baked, and the steps done so far."""

    product: str
    spec: SweepSpec
    bench: Workbench
    person: str
    allow_dirty: bool
    steps: dict[str, StepRun] = field(default_factory=dict)

    def done(self, step: str) -> StepRecord:
        """The record of a finished step: inputs, outputs, facts."""
        return self.steps[step].record


Steps = dict[str, Callable[[Release], StepRun | Refusal]]


def bake(project: Project, product: str, *, allow_dirty: bool, say: Callable[[str], None]) -> Release | Refusal:
    """Bake one product, from its pinned data to a probed serving image; the first *no* ends it, with every reason."""
    require_product_files(project.places, project.require_product(product))
    spec = load_sweep_spec(project.places.sweep_file(product))
    return run_steps(Release(product, spec, project.workbench(say), project.person, allow_dirty), STEPS)


def run_steps(release: Release, steps: Steps) -> Release | Refusal:
    """Do steps in order; an erasure brings its own first ones (mlops/erasure/retraining.py)."""
    for number, (name, step) in enumerate(steps.items(), start=1):
        release.bench.say(f"[{number}/{len(steps)}] {name}")
        ended = step(release)
        if isinstance(ended, Refusal):
            return ended
        release.steps[name] = ended
        release.bench.say(f"      {ended.render_text()}")
    return release


def bring_data(it: Release) -> StepRun:
    """1. The pinned dataset version lies in cache and remote, or is made from its recipe and must equal the pin."""
    return import_step(it.bench, product=it.product, dataset=it.spec.dataset)


def check_source(it: Release) -> StepRun | Refusal:
    """2. Trainer, project files and lock are looked at before money is spent; a dirty tree needs `--allow-dirty`."""
    return source_step(it.bench, product=it.product, allow_dirty=it.allow_dirty)


def search(it: Release) -> StepRun | Refusal:
    """3. Trials run on Ray under prepaid leases; the best within the constraints on validation data wins."""
    request = SweepStepRequest(it.spec, commit=it.done("source check").facts["commit"], spender=it.person)
    return sweep_step(it.bench, request, manifest=it.done("data").outputs["manifest"])


def export(it: Release) -> StepRun:
    """4. The winner becomes a candidate folder: ONNX that answers like torch, safetensors, contract."""
    return export_step(it.bench, spec=it.spec, sweep=it.done("sweep"))


def judge(it: Release) -> StepRun | Refusal:
    """5. The gate judges the exported candidate, the thing that will serve, on rows that no training saw."""
    what = it.done("data").outputs | it.done("export").outputs | {"run_id": it.done("sweep").facts["mlflow_run_id"]}
    paid = {"budget": it.spec.budget, "spender": it.person}
    return gate_step(it.bench, product=it.product, **what, **paid, verify_signature=open_verifier(it.bench, it.product))


def register(it: Release) -> StepRun:
    """6. What passed becomes an immutable model version in MLflow, with its evidence."""
    source, sweep, exported, gate = (it.done(name) for name in ("source check", "sweep", "export", "gate"))
    return registration_step(it.bench, product=it.product, source=source, sweep=sweep, export=exported, gate=gate)


def build(it: Release) -> StepRun:
    """7. The version becomes a small, reproducible OCI image; no daemon, no root."""
    candidate, gate = it.done("export").outputs["candidate"], it.done("gate").outputs["gate"]
    number = it.done("registration").facts["number"]
    return image_step(it.bench, product=it.product, candidate=candidate, gate=gate, number=number)


def probe(it: Release) -> StepRun | Refusal:
    """8. The actual image is booted, locked down, and must answer as the judged model did: evidence for promotion."""
    runtime = choose_runtime(("podman", "bubblewrap", "process"), state=it.bench.places.serving_state)
    image, candidate = it.done("image").outputs["image"], it.done("export").outputs["candidate"]
    return probe_step(it.bench, product=it.product, image=image, candidate=candidate, runtime=runtime)


STEPS: Steps = {
    "data": bring_data, "source check": check_source, "sweep": search, "export": export,
    "gate": judge, "registration": register, "image": build, "probe": probe,
}  # fmt: skip
