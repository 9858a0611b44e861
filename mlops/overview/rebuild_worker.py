"""Makes a release again inside a clean clone, in a process of its own that runs the clone's code.

`python -m mlops.overview.rebuild_worker PLAN.json RESULT.json`, started by rebuild.py with the clone as its folder.
Leaves to others: the clean place and the comparison (rebuild.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.budgets.leases import LeaseBook
from mlops.clock import Clock, SystemClock
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.errors import MlopsError, Refusal
from mlops.files import write_atomically
from mlops.ids import Ids, TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.provenance.digest import digest_file
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepBook, Workbench
from mlops.serving.step_image import image_step
from mlops.training.contract import contract_of_schema
from mlops.training.launch import make_request
from mlops.training.one_trial import TrialRequest, run_one_trial
from mlops.training.process_group import ProcessCrew
from mlops.training.spec import SweepSpec, load_sweep_spec
from mlops.training.step_export import export_step


@dataclass(frozen=True)
class CleanPlace:
    """The clone and what is needed to work in it."""

    places: Places
    plan: dict[str, Any]
    """`RebuildPlan.to_json()`, with `ledger_url` (of the real project, which pays) and `person`."""
    clock: Clock
    ids: Ids

    def say(self, line: str) -> None:
        """Progress goes to standard error."""
        print(line, file=sys.stderr, flush=True)


def rebuild(place: CleanPlace) -> dict[str, str]:
    """Every digest that came out, by the names of `RebuildPlan.recorded`.

    Raises:
        MlopsError: A step failed.
    """
    plan, places = place.plan, place.places
    product = str(plan["product"])
    place.say("[1/4] dataset by digest")
    version = load_dataset_version(places, str(plan["dataset"]), revision=str(plan["dvc_digest"]))
    spec = load_sweep_spec(places.sweep_file(product))
    inputs = make_request(places, spec, version=version, tags={}, spender="").inputs
    found = {name: inputs[name] for name in ("trainer", "spec", "lock", "manifest")}
    found["code of sweep"] = inputs["code"]
    place.say(f"[2/4] trial {plan['trial']} with seed {plan['seed']}")
    weights = _train(place, spec, version)
    found["weights"] = digest_file(weights)
    ledger = open_ledger(sqlite_url(places.ledger_file), place.clock)
    book = StepBook(ledger, clock=place.clock, ids=place.ids, signer=None)
    bench = Workbench(places, ledger, place.clock, place.ids, book, place.say)
    place.say("[3/4] export")
    exported = export_step(bench, spec=spec, sweep=_sweep_record(place, found, weights))
    found["candidate"], found["code of export"] = exported.record.outputs["candidate"], exported.record.inputs["code"]
    place.say("[4/4] image")
    image = image_step(
        bench, product=product, candidate=found["candidate"], gate=str(plan["gate"]), number=int(plan["number"])
    )
    found["image"], found["code of image"] = image.record.outputs["image"], image.record.inputs["code"]
    found["deploy_spec"] = image.record.inputs["deploy_spec"]
    ledger.close()
    return found


def _train(place: CleanPlace, spec: SweepSpec, version: DatasetVersion) -> Path:
    plan, places = place.plan, place.places
    product = str(plan["product"])
    contract = contract_of_schema(version.schema, product=product, digest=version.digest)
    crew = ProcessCrew(places, version)
    paying = open_ledger(str(plan["ledger_url"]), place.clock)
    run_id = place.ids.new("rebuild")
    request = TrialRequest(
        run_id=run_id,
        spec=spec,
        trainer_file=places.trainer_file(product),
        number=int(plan["trial"]),
        params=plan["params"],
        reserved={"columns": contract.column_sizes(), "classes": len(contract.classes)},
        seed=int(plan["seed"]),
        folder=places.checkpoints / run_id,
        spender=str(plan["person"]),
    )
    try:
        leases = LeaseBook(paying, place.clock, place.ids)
        ended = run_one_trial(request, crew=crew, leases=leases, clock=place.clock, say=place.say)
    finally:
        crew.close()
        paying.close()
    if isinstance(ended, Refusal):
        raise MlopsError(f"the budget does not pay for a rebuild: {ended.render_text()}", hint="mlops budget show")
    return ended


def _sweep_record(place: CleanPlace, found: dict[str, str], weights: Path) -> StepRecord:
    """What the export reads of a sweep."""
    plan = place.plan
    return StepRecord(
        step_id="rebuild",
        kind="sweep",
        product=str(plan["product"]),
        memo_key="",
        started_us=0,
        finished_us=0,
        inputs={"manifest": found["manifest"]},
        outputs={"weights": found["weights"]},
        facts={
            "weights_file": str(weights.relative_to(place.places.root)),
            **{name: plan[name] for name in ("params", "sweep_id", "trial", "seed")},
        },
        envelope=None,
    )


def _main(plan_file: Path, result_file: Path) -> None:
    clock = SystemClock()
    place = CleanPlace(Places(Path.cwd()), json.loads(plan_file.read_text(encoding="utf-8")), clock, TimeIds(clock))
    result: dict[str, Any] = {"digests": {}, "error": None}
    try:
        result["digests"] = rebuild(place)
    except MlopsError as error:
        result["error"] = {"message": error.message, "hint": error.hint, "items": list(error.items)}
    write_atomically(result_file, json.dumps(result))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
