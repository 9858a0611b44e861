"""The release step `registration`: a candidate that passed the gate becomes a model version in MLflow.

Leaves to others: whether it passed (mlops/evaluation), MLflow itself (mlflow_models.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_json
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepBook, StepOutcome, StepRun
from mlops.registry.mlflow_door import artifact_root, tracking_uri
from mlops.registry.mlflow_models import ModelRegistry

KIND = "registration"


def registration_step(
    book: StepBook,
    places: Places,
    *,
    product: str,
    candidate: str,
    candidate_folder: Path,
    contract: Mapping[str, Any],
    gate: str,
    gate_folder: Path,
    source_report: str,
    run_id: str,
    tags: Mapping[str, str],
) -> StepRun:
    """Register once per candidate and gate result.

    Args:
        book: Steps of this project.
        places: Paths of this project.
        product: Name of the registered model.
        candidate: Digest of the candidate.
        candidate_folder: Its files.
        contract: Content of its `contract.json`.
        gate: Digest of the gate result that let it pass.
        gate_folder: Report and result, logged to the run.
        source_report: Digest of the source check's report; a new report registers nothing new, but links it to the chain.
        run_id: MLflow run of the winning trial.
        tags: Added to the version.

    Raises:
        ProvenanceError: MLflow cannot be used.
    """
    registry = ModelRegistry(tracking_uri(places), artifact_root(places))

    def register() -> StepOutcome:
        version = registry.register_version(
            product,
            run_id=run_id,
            candidate_folder=candidate_folder,
            contract=contract,
            tags={**tags, "mlops.gate": gate},
            gate_report=gate_folder,
        )
        facts = {
            "summary": f"{product}@{version.number} ({', '.join(version.aliases)})",
            "number": version.number,
            "run_id": version.run_id,
            "alias": "latest",
        }
        digest = digest_json({"product": product, "number": version.number, "candidate": candidate, "gate": gate})
        return StepOutcome(outputs={"version": digest}, facts=facts)

    def is_present(record: StepRecord) -> bool:
        return registry.find_version(product, int(record.facts["number"])) is not None

    inputs = {
        "candidate": candidate,
        "gate": gate,
        "source_report": source_report,
        "code": digest_code("mlops.registry"),
    }
    return book.run(KIND, product=product, inputs=inputs, action=register, is_present=is_present)
