"""The release step `gate`: the exported candidate is judged by the product's policy; a no-go ends the release.

Leaves to others: judging (gate.py, judging.py), memoisation and signing (mlops/provenance/steps.py).
"""

from __future__ import annotations

from mlops.errors import Reason, Refusal
from mlops.evaluation.signed_answers import Verify, refuse_all
from mlops.evaluation.verdicts import GateResult
from mlops.provenance.digest import digest_code, digest_file, digest_folder, digest_json, hex_of
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.steps import StepOutcome, StepRun, Workbench
from mlops.registry.mlflow_runs import open_mirror

KIND = "gate"


def gate_step(
    bench: Workbench,
    *,
    product: str,
    candidate: str,
    manifest: str,
    run_id: str,
    budget: str,
    spender: str = "",
    verify_signature: Verify = refuse_all,
) -> StepRun | Refusal:
    """Judge once per candidate, policy, rows, cases, project checks and gate code.

    Args:
        bench: What steps work with.
        product: What is judged.
        candidate: Digest of the exported candidate.
        manifest: Digest of the dataset version.
        run_id: MLflow run of the winning trial; report and verdict are logged to it, also those of a no-go.
        budget: Pays for the machines that the policy asks for, where it names no budget itself.
        verify_signature: Whether a waiver or statement is signed by somebody who may.
        spender: In whose name the machines that the policy asks for are paid.

    Returns:
        The step, or the refusal: every check that stops the release, too many looks at these test rows, or no budget.

    Raises:
        ProjectError: No policy, or a wrong one.
        EvaluationError: The gate itself could not run.
    """
    places, clock = bench.places, bench.clock
    evaluation = places.root / "evaluation"
    inputs = {
        "candidate": candidate,
        "policy": digest_file(places.policy_file(product)),
        "manifest": manifest,
        "incidents": digest_json(
            {
                name: digest_folder(evaluation / name) if (evaluation / name).is_dir() else ""
                for name in ("incidents", "checks", f"signed/{product}")
            }
        ),
        "code": digest_code("mlops.evaluation"),
    }

    def judge() -> StepOutcome | Refusal:
        from mlops.evaluation.judging import choose_crew, judge_candidate, prepare_request, spend_look_of  # loads torch

        request = prepare_request(
            places,
            places.candidates / hex_of(candidate),
            clock=clock,
            ledger=bench.ledger,
            verify_signature=verify_signature,
        )
        looks = spend_look_of(bench.ledger, request)
        if isinstance(looks, Refusal):
            return looks
        crew = choose_crew(places, request, budget=budget, ledger=bench.ledger, ids=bench.ids, spender=spender)
        judgement = judge_candidate(places, request, open_crew=crew)
        if isinstance(judgement, Refusal):
            return judgement
        result = judgement.result
        with open_mirror(places, clock=clock) as mirror:
            mirror.log_file(run_id, judgement.folder, folder="gate")
            mirror.set_tags(run_id, {"mlops.gate_verdict": str(result.verdict), "mlops.gate": result.digest})
        if not result.is_go:
            return refusal_of(result)
        facts = {
            "summary": _summarise(result),
            "verdict": str(result.verdict),
            "looks": looks,
            "report": str((judgement.folder / "gate.html").relative_to(places.root)),
            "checks": {check.name: str(check.verdict) for check in result.checks},
            "files": {path.name: digest_file(path) for path in sorted(judgement.folder.iterdir())},
        }
        return StepOutcome(outputs={"gate": result.digest}, facts=facts)

    def is_present(record: StepRecord) -> bool:
        return (places.root / record.facts["report"]).is_file()

    return bench.book.run_or_refuse(KIND, product=product, inputs=inputs, action=judge, is_present=is_present)


def refusal_of(result: GateResult) -> Refusal:
    """Every check that stops the release, with its explanation."""
    content = result.to_json()
    reasons = tuple(
        Reason(f"{check['name']}:{check['code']}", check["explanation"])
        for check in content["checks"]
        if check["stops"]
    )
    return Refusal(reasons or (Reason("empty-policy", "the policy has no blocking check"),))


def _summarise(result: GateResult) -> str:
    counts = {
        word: sum(str(check.verdict) == word for check in result.checks) for word in ("PASS", "UNDECIDED", "FAIL")
    }
    return f"{result.verdict}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count)
