"""Judging a candidate folder of a project: reads policy and rows, runs the gate, keeps the result.

Leaves to others: the gate itself (gate.py), the step's record and what follows from the verdict (mlops/release.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlops.budgets.opening import open_lease_book
from mlops.clock import Clock
from mlops.datasets.version import load_dataset_version, read_split
from mlops.errors import ProjectError, Refusal
from mlops.evaluation.attributes_table import load_attributes
from mlops.evaluation.audit_evidence import load_audit, trained_rows
from mlops.evaluation.gate import GateRequest, OpenCrew, run_gate
from mlops.evaluation.leased_crew import open_leased_crew
from mlops.evaluation.policy import Policy, load_policy
from mlops.evaluation.rows import rows_of_table
from mlops.evaluation.signed_answers import Verify, refuse_all
from mlops.evaluation.signed_files import load_answers
from mlops.evaluation.sql_looks import spend_look
from mlops.evaluation.store import keep_result
from mlops.evaluation.twins import find_twins
from mlops.evaluation.verdicts import GateResult
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.training.candidate import Candidate, load_candidate


@dataclass(frozen=True)
class Judgement:
    """A verdict and where its evidence lies."""

    result: GateResult
    folder: Path
    """Holds gate.json and gate.html."""


def prepare_request(
    places: Places,
    candidate_folder: Path,
    *,
    clock: Clock,
    champion_folder: Path | None = None,
    policy_file: Path | None = None,
    seed: int = 0,
    ledger: Ledger | None = None,
    verify_signature: Verify = refuse_all,
) -> GateRequest:
    """Everything the gate needs, read from the project; the sweep's other trials only with its ledger.

    Raises:
        TrainingError: Not a candidate folder.
        ProjectError: No policy, or a wrong one, or one of another product.
        DatasetError: The rows cannot be read.
        ProvenanceError: A waiver or statement is damaged.
    """
    candidate = load_candidate(candidate_folder)
    policy = _load_policy_of(candidate, policy_file or places.policy_file(candidate.product))
    version = load_dataset_version(places, candidate.contract.dataset.name)
    waivers, statements = load_answers(places, candidate.product)
    return GateRequest(
        candidate=candidate,
        policy=policy,
        schema=version.schema,
        test=read_split(version, "test"),
        train=trained_rows(read_split(version, "train"), places=places, candidate=candidate),
        clock=clock,
        champion=None if champion_folder is None else load_candidate(champion_folder),
        seed=seed,
        project_checks_folder=places.root / "evaluation" / "checks",
        incidents_folder=places.root / "evaluation" / "incidents",
        audit=load_audit(places, candidate),
        attributes=None if policy.attributes is None else load_attributes(places.root / policy.attributes),
        dataset_digest=version.digest,
        twins=() if ledger is None else find_twins(ledger, candidate),
        cache_folder=places.cache / "checks",
        keys_folder=places.keys_folder,
        waivers=waivers,
        statements=statements,
        verify_signature=verify_signature,
    )


def spend_look_of(ledger: Ledger, request: GateRequest) -> int | Refusal:
    """Count this candidate's look at its test rows; a refusal when the policy's looks are used up."""
    rows = rows_of_table(request.test, schema=request.schema)
    return spend_look(
        ledger,
        test_digest=rows.digest,
        candidate=request.candidate.digest,
        product=request.policy.product,
        allowed=request.policy.looks,
    )


def choose_crew(
    places: Places, request: GateRequest, *, budget: str, ledger: Ledger, ids: Ids, spender: str
) -> OpenCrew | None:
    """Workers on Ray under a lease where the policy names machines; None is processes of this machine.

    `budget` pays where the policy names none.

    Raises:
        ProjectError: The budget files have problems.
    """
    machines = request.policy.machines
    if machines is None:
        return None
    leases = open_lease_book(places, ledger, request.clock, ids)
    return partial(
        open_leased_crew,
        request,
        machines=machines,
        budget=machines.budget or budget,
        places=places,
        leases=leases,
        ids=ids,
        spender=spender,
    )


def judge_candidate(places: Places, request: GateRequest, *, open_crew: OpenCrew | None = None) -> Judgement | Refusal:
    """Run the gate and keep what it says; a refusal when the budget does not pay for the machines."""
    result = run_gate(request, open_crew=open_crew)
    if isinstance(result, Refusal):
        return result
    return Judgement(result=result, folder=keep_result(places, result, judged_us=request.clock.now_us()))


def _load_policy_of(candidate: Candidate, path: Path) -> Policy:
    policy = load_policy(path)
    if policy.product != candidate.product:
        raise ProjectError(
            f"{path} is the policy of {policy.product!r}, the candidate is of {candidate.product!r}",
            hint="a product's policy is evaluation/<product>.yaml",
        )
    return policy


def find_newest_candidate(places: Places, *, product: str) -> Path:
    """The candidate folder of a product that was exported last.

    Raises:
        ProjectError: There is none.
    """
    folders = sorted(places.candidates.glob("[0-9a-f]*"), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    for folder in folders:
        if (folder / "contract.json").is_file() and load_candidate(folder).product == product:
            return folder
    raise ProjectError(
        f"there is no candidate of {product!r} in {places.candidates}", hint=f"make one with `mlops release {product}`"
    )
