"""The release step `dataset-import`: the pinned version of a dataset is present, or is made from its recipe.

Leaves to others: how an import works (importing.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from pathlib import Path

from mlops.datasets.importing import import_dataset
from mlops.datasets.recipe import load_recipe
from mlops.datasets.sources import fetch_source_digests
from mlops.datasets.verifying import find_present_version
from mlops.provenance.digest import digest_code, digest_json
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import PreviewBook, StepMissing, StepOutcome, StepRun, Workbench

KIND = "dataset-import"


def import_step(bench: Workbench, *, product: str, dataset: str) -> StepRun:
    """Import a dataset once per recipe, raw files and importing code.

    Raises:
        DatasetError: The rows are not as the recipe says, or the version differs from the pinned one.
        EnvironmentFault: A download failed.
    """
    places, book = bench.places, bench.book
    recipe = load_recipe(places, dataset)
    download = _refuse_download if isinstance(book, PreviewBook) else None
    digests = fetch_source_digests(places, recipe, download=download)

    def do_import() -> StepOutcome:
        outcome = import_dataset(places, dataset, progress=lambda line: bench.say(f"      {line}"))
        manifest = outcome.version.manifest
        facts = {
            "summary": f"{dataset} {outcome.version.digest[7:19]}: {manifest.rows} rows, {len(manifest.shards)} shards",
            "dataset": dataset,
            "dvc_digest": outcome.version.dvc_digest,
            "rows": manifest.rows,
            "rows_in_train_and_test": outcome.rows_in_train_and_test,
        }
        return StepOutcome(outputs={"manifest": outcome.version.digest}, facts=facts)

    def is_present(record: StepRecord) -> bool:
        found = find_present_version(places, dataset)
        return found is not None and found.digest == record.outputs["manifest"]

    inputs = {
        "source": digest_json(digests),
        "recipe": recipe.digest,
        "code": digest_code("mlops.datasets"),
    }
    return book.run(KIND, product=product, inputs=inputs, action=do_import, is_present=is_present)


def _refuse_download(requirement: str, folder: Path) -> Path:
    raise StepMissing(KIND)
