"""The release step `export`: the sweep's winner becomes a candidate folder.

Leaves to others: the export itself (export.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops.datasets.version import load_dataset_version
from mlops.files import remove_tree
from mlops.places import Places
from mlops.provenance.digest import digest_code, digest_file, digest_json, hex_of
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.training.spec import SweepSpec

if TYPE_CHECKING:
    from pathlib import Path

KIND = "export"


def export_step(bench: Workbench, *, spec: SweepSpec, sweep: StepRecord) -> StepRun:
    """Export once per weights, trainer and exporting code.

    Args:
        bench: What steps work with.
        spec: Names product and dataset; the validation rows compare torch with onnxruntime.
        sweep: The finished `sweep` step.

    Raises:
        TrainingError: The export fails, or answers differ by more than the bound.
    """
    places, product, dataset = bench.places, spec.product, spec.dataset
    inputs = {
        "weights": sweep.outputs["weights"],
        "trainer": digest_file(places.trainer_file(product)),
        "manifest": sweep.inputs["manifest"],
        "code": digest_code("mlops.training"),
        **({} if spec.weights == "float32" else {"weights_as": digest_json(spec.weights)}),
        **({} if spec.export == "onnx" else {"export_as": digest_json(spec.export)}),
    }

    def export() -> StepOutcome:
        import torch  # costs seconds

        from mlops.datasets.reader import ShardReader
        from mlops.training.contract import contract_of_schema
        from mlops.training.export import ExportRequest, export_candidate, load_parity

        version = load_dataset_version(places, dataset)
        contract = contract_of_schema(version.schema, product=product, digest=version.digest)
        reader = ShardReader(version, places.cache / "shards")
        rows = reader.count_rows("validation")
        batches = list(
            reader.batches("validation", batch_size=rows, seed=0, epoch=0, rank=0, world_size=1, shuffle=False)
        )
        validation = {name: torch.cat([batch.features[name] for batch in batches]) for name in batches[0].features}
        candidate = export_candidate(
            ExportRequest(
                trainer_file=places.trainer_file(product),
                weights_file=places.root / sweep.facts["weights_file"],
                params=sweep.facts["params"],
                contract=contract,
                validation=validation,
                candidates_folder=places.candidates,
                sweep_id=sweep.facts["sweep_id"],
                trial=sweep.facts["trial"],
                seed=sweep.facts["seed"],
                members=sweep.facts.get("members", 0),
                weights=spec.weights,
                export=spec.export,
            )
        )
        parity = load_parity(candidate)
        what = "ONNX equals torch" if spec.export == "onnx" else "torch answers rows alone as together"
        summary = f"candidate {candidate.digest[7:19]}, {what} within {parity['max_abs_difference']:g}"
        return StepOutcome(
            outputs={"candidate": candidate.digest},
            facts={"summary": f"{summary} on {parity['rows']} rows", "parity": parity},
        )

    def is_present(record: StepRecord) -> bool:
        return candidate_folder(places, record.outputs["candidate"]).is_dir()

    return bench.book.run(KIND, product=product, inputs=inputs, action=export, is_present=is_present)


def candidate_folder(places: Places, digest: str) -> Path:
    """Where a candidate lies."""
    return places.candidates / hex_of(digest)


def purge_candidate(places: Places, digest: str) -> bool:
    """Remove a candidate's files; its signed record stays. Says whether they were there.

    Raises:
        EnvironmentFault: They cannot be removed.
    """
    return remove_tree(candidate_folder(places, digest))
