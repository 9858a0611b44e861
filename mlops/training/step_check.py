"""The step `trainer-check`: this very code kept the trainer contract, before any lease; signed like every step.

Leaves to others: the check itself (check.py, check_process.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from mlops.datasets.version import DatasetVersion
from mlops.errors import Reason, Refusal
from mlops.provenance.digest import digest_code, digest_file, digest_folder, digest_json
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.training.check_process import check_confined, tests_folder
from mlops.training.spec import SweepSpec, verify_parameters

KIND = "trainer-check"
CHECK_CODE = (
    "mlops.provenance.confinement",
    "mlops.training.check",
    "mlops.training.check_process",
    "mlops.training.worker",
    "mlops.training.joined_module",
    "mlops.training.onnx_export",
    "mlops.training.torch_serving",
    "mlops.training.undone_steps",
)
_CHOICES = ("space", "fixed", "objective", "constraints", "audit_pool", "isolation")
"""What of a spec the check depends on: more trials or another budget do not repeat it."""


def check_step(bench: Workbench, spec: SweepSpec, *, version: DatasetVersion) -> StepRun | Refusal:
    """Check once per trainer, its tests, the searched space, kind of export, columns, lock and checking code.

    Returns:
        The step, or the refusal with every line of the contract that is broken.

    Raises:
        ProjectError: Not Python, or the spec and the trainer name different parameters.
    """
    places = bench.places
    trainer = places.trainer_file(spec.product)
    verify_parameters(spec, trainer_file=trainer)
    tests = tests_folder(places, spec.product)
    content = spec.to_json()
    inputs = {
        "trainer": digest_file(trainer),
        "tests": digest_folder(tests) if tests.is_dir() else digest_json(None),
        "spec": digest_json({name: content[name] for name in _CHOICES}),
        "schema": f"sha256:{version.manifest.schema_sha256}",
        "lock": digest_file(places.lock_file) if places.lock_file.is_file() else digest_json(None),
        "code": digest_code(*CHECK_CODE),
        **({} if spec.export == "onnx" else {"export_as": digest_json(spec.export)}),
    }

    def check() -> StepOutcome | Refusal:
        violations = check_confined(places, spec, version=version, say=bench.say)
        if violations:
            return Refusal(tuple(Reason(violation.line, violation.text) for violation in violations))
        summary = f"{trainer.name} keeps the trainer contract"
        return StepOutcome(
            outputs={"report": digest_json({"trainer": inputs["trainer"], "violations": []})},
            facts={"summary": summary, "verdict": "PASS", "dataset": version.digest},
        )

    return bench.book.run_or_refuse(KIND, product=spec.product, inputs=inputs, action=check)
