"""The release step `registration`: a candidate that passed the gate becomes a model version in MLflow.

Leaves to others: whether it passed (mlops/evaluation), MLflow itself (mlflow_models.py).
"""

from __future__ import annotations

import json

from mlops.provenance.digest import digest_code, digest_json, hex_of
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.registry.mlflow_door import artifact_root, tracking_uri
from mlops.registry.mlflow_models import ModelRegistry

KIND = "registration"


def registration_step(
    bench: Workbench, *, product: str, source: StepRecord, sweep: StepRecord, export: StepRecord, gate: StepRecord
) -> StepRun:
    """Register once per candidate and gate result.

    Args:
        bench: What steps work with.
        product: Name of the registered model.
        source: The finished source check; a new report registers nothing new, but is linked to the version.
        sweep: The finished sweep.
        export: The finished export.
        gate: The finished gate, passed.

    Raises:
        ProvenanceError: MLflow cannot be used.
    """
    places, candidate, verdict = bench.places, export.outputs["candidate"], gate.outputs["gate"]
    folder = places.candidates / hex_of(candidate)
    registry = ModelRegistry(tracking_uri(places), artifact_root(places))

    def register() -> StepOutcome:
        version = registry.register_version(
            product,
            run_id=sweep.facts["mlflow_run_id"],
            candidate_folder=folder,
            contract=json.loads((folder / "contract.json").read_bytes()),
            tags={
                "mlops.gate": verdict,
                "mlops.gate_verdict": gate.facts["verdict"],
                "mlops.commit": source.facts["commit"],
                "mlops.is_dirty": str(source.facts["is_dirty"]).lower(),
                "mlops.lock": sweep.inputs["lock"],
                "mlops.sweep": sweep.facts["sweep_id"],
            },
            gate_report=(places.root / gate.facts["report"]).parent,
        )
        facts = {
            "summary": f"{product}@{version.number} ({', '.join(version.aliases)})",
            "number": version.number,
            "run_id": version.run_id,
            "alias": "latest",
        }
        digest = digest_json({"product": product, "number": version.number, "candidate": candidate, "gate": verdict})
        return StepOutcome(outputs={"version": digest}, facts=facts)

    def is_present(record: StepRecord) -> bool:
        return registry.find_version(product, int(record.facts["number"])) is not None

    inputs = {
        "candidate": candidate,
        "gate": verdict,
        "source_report": source.outputs["report"],
        "code": digest_code("mlops.registry"),
    }
    return bench.book.run(KIND, product=product, inputs=inputs, action=register, is_present=is_present)
