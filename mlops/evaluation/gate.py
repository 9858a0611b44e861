"""The gate: START HERE. Hear every check of the policy, each within its time, then decide on all evidence at once.

Leaves to others: the checks (checks/), the rule of decision (decisions.py), pages for people (report.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops.clock import SECOND_US, Clock
from mlops.evaluation.checks.table import CHECKS
from mlops.evaluation.decisions import combine_verdicts, decide_claims, explain_verdict
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import JudgedModel, load_judged
from mlops.evaluation.plain_reference import price_fairness
from mlops.evaluation.policy import AnyRule, Policy
from mlops.evaluation.reference_membership import AuditPool
from mlops.evaluation.rows import rows_of_table
from mlops.evaluation.signed_answers import Signed, SignedAnswers, Verify, refuse_all
from mlops.evaluation.verdicts import CheckResult, Findings, GateResult, JudgedClaim, NotEvaluableError, Verdict
from mlops.provenance.digest import digest_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops.datasets.schema import Schema
    from mlops.training.candidate import Candidate

CHECKS_AT_ONCE = 2


@dataclass(frozen=True)
class GateRequest:
    """What is judged, by which policy, on which rows."""

    candidate: Candidate
    policy: Policy
    schema: Schema
    test: pa.Table
    """Rows that no training saw."""
    train: pa.Table
    """Rows of the training split, for membership inference."""
    clock: Clock
    champion: Candidate | None = None
    """The version in production, if there is one."""
    seed: int = 0
    project_checks_folder: Path | None = None
    incidents_folder: Path | None = None
    audit: AuditPool | None = None
    """The sweep's reference models over the audit pool, if it was trained with one."""
    waivers: tuple[Signed, ...] = ()
    statements: tuple[Signed, ...] = ()
    """Answers to clauses of the values that no check can give."""
    verify_signature: Verify = refuse_all
    """Whether the signature of a waiver or statement holds, by somebody who may give it."""
    dataset_digest: str | None = None
    """Manifest digest of the rows; a candidate trained on another version is not evaluable."""
    checks_at_once: int = CHECKS_AT_ONCE
    on_finished: Callable[[str, float], None] = lambda name, seconds: None
    """Called with each check's name and seconds, for progress."""


@dataclass(frozen=True)
class _Heard:
    """What came of one check before any decision."""

    findings: Findings
    code: str
    text: str
    seconds: float


def run_gate(request: GateRequest) -> GateResult:
    """Judge a candidate.

    The result is a function of the request's values: neither the order of rows, nor the number of checks at once, nor
    the time of day changes it.
    """
    return judge_hearing(
        open_hearing(request),
        candidate=request.candidate.digest,
        clock=request.clock,
        inputs=_fixed_inputs(request),
        checks_at_once=request.checks_at_once,
        on_finished=request.on_finished,
        signed=SignedAnswers(request.waivers, request.statements, request.verify_signature),
    )


def judge_hearing(
    hearing: Hearing,
    *,
    candidate: str,
    clock: Clock,
    inputs: dict[str, str],
    checks_at_once: int = CHECKS_AT_ONCE,
    on_finished: Callable[[str, float], None] = lambda name, seconds: None,
    signed: SignedAnswers | None = None,
) -> GateResult:
    """Hear all checks of the policy and decide; `inputs` are digests of what is not laid before the hearing itself."""
    policy = hearing.policy
    with _one_thread_each():
        heard = hear_checks(
            policy.checks,
            hear=lambda rule: CHECKS[rule.kind](rule, hearing),
            clock=clock,
            checks_at_once=checks_at_once,
            on_finished=on_finished,
        )
    digests, counts = _describe_rows(hearing)
    checks = (signed or SignedAnswers()).add_to(
        decide_checks(policy, heard), policy=policy, candidate=candidate, now_us=hearing.now_us
    )
    return GateResult(
        product=policy.product,
        candidate=candidate,
        policy=policy.digest,
        inputs={**inputs, **digests},
        settings={"alpha": policy.alpha, "seed": hearing.seed, "rows": counts},
        checks=checks,
        context=_context(hearing),
    )


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Checks run side by side, each on one thread: the same sums on any machine, and no fight for cores."""
    import torch  # costs seconds to load; every gate needs it for parity and attacks

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def open_hearing(request: GateRequest) -> Hearing:
    """Lay the candidate, its champion and the rows before the gate; nothing is loaded yet."""
    champion = request.champion

    def load_champion() -> JudgedModel:
        assert champion is not None
        return load_judged(champion)

    return Hearing(
        policy=request.policy,
        load_model=lambda: load_judged(request.candidate),
        load_test=lambda: rows_of_table(request.test, schema=request.schema),
        load_train=lambda: rows_of_table(request.train, schema=request.schema),
        load_champion=None if champion is None else load_champion,
        classes=tuple(request.schema.label.categories or ()),
        dataset_digest=request.dataset_digest,
        seed=request.seed,
        project_checks_folder=request.project_checks_folder,
        incidents_folder=request.incidents_folder,
        audit=request.audit,
        now_us=request.clock.now_us(),
    )


def hear_checks(
    rules: tuple[AnyRule, ...],
    *,
    hear: Callable[[AnyRule], Findings],
    clock: Clock,
    checks_at_once: int,
    on_finished: Callable[[str, float], None] = lambda name, seconds: None,
) -> dict[str, _Heard]:
    """Run checks side by side; one that crashes or takes too long hurts no other."""
    with ThreadPoolExecutor(max_workers=checks_at_once, thread_name_prefix="check") as pool:
        futures: dict[str, Future[_Heard]] = {
            rule.name: pool.submit(_hear_one, rule, hear, clock, on_finished) for rule in rules
        }
        return {name: future.result() for name, future in futures.items()}


def _hear_one(
    rule: AnyRule, hear: Callable[[AnyRule], Findings], clock: Clock, on_finished: Callable[[str, float], None]
) -> _Heard:
    """One check in a thread of its own, which is left behind when the time is over (Python cannot end a thread)."""
    started_us = clock.monotonic_us()
    found: list[_Heard] = []

    def work() -> None:
        try:
            findings, code, text = hear(rule), "", ""
        except NotEvaluableError as error:
            findings, code, text = Findings(()), error.code, error.text
        except Exception as error:
            findings, code, text = Findings(()), "crashed", f"the check crashed: {type(error).__name__}: {error}"
        found.append(_Heard(findings, code, text, seconds=0.0))

    thread = threading.Thread(target=work, name=f"check-{rule.name}", daemon=True)
    thread.start()
    thread.join(timeout=rule.time_limit)
    seconds = (clock.monotonic_us() - started_us) / SECOND_US
    on_finished(rule.name, seconds)
    if not found:
        return _Heard(Findings(()), "time-out", f"stopped after its limit of {rule.time_limit:g} s", seconds)
    return _Heard(found[0].findings, found[0].code, found[0].text, seconds)


def decide_checks(policy: Policy, heard: dict[str, _Heard]) -> tuple[CheckResult, ...]:
    """Verdicts of all checks, from everything that was heard."""
    evaluable = {name: one.findings for name, one in heard.items() if not one.code}
    for name, one in list(evaluable.items()):
        if any(_is_broken(claim.evidence) for claim in one.claims):
            heard[name] = _Heard(
                Findings(()), "not-finite", "the check gave NaN instead of evidence", heard[name].seconds
            )
            del evaluable[name]
    blocking = frozenset(rule.name for rule in policy.checks if rule.blocking)
    judged = decide_claims(evaluable, blocking=blocking, alpha=policy.alpha)
    return tuple(_result(rule, heard[rule.name], judged.get(rule.name)) for rule in policy.checks)


def _is_broken(evidence: object) -> bool:
    if evidence is None:
        return False
    numbers = [getattr(evidence, name) for name in ("estimate", "lower", "upper", "p_good", "p_bad")]
    return not bool(np.isfinite(numbers).all())


def _result(rule: AnyRule, heard: _Heard, judged: tuple[JudgedClaim, ...] | None) -> CheckResult:
    claims: tuple[JudgedClaim, ...] = judged or ()
    verdict, code, explanation = Verdict.UNDECIDED, heard.code, heard.text
    if judged is not None:
        verdict = combine_verdicts(claims)
        code, explanation = explain_verdict(claims, verdict)
    return CheckResult(
        name=rule.name,
        kind=rule.kind,
        title=rule.title or rule.name.replace("-", " "),
        owner=rule.owner,
        policy_reason=rule.reason,
        is_blocking=rule.blocking,
        is_undecided_reported=rule.undecided == "report",
        undecided_reason=rule.undecided_reason,
        verdict=verdict,
        claims=claims,
        code=code,
        explanation=explanation,
        details=heard.findings.details,
        seconds=heard.seconds,
    )


def _context(hearing: Hearing) -> dict[str, Any]:
    """What readers want to know beside the verdict; what cannot be computed is left out."""
    try:
        price = price_fairness(hearing)
    except Exception:
        return {}
    return {"price_of_fairness": price} if price else {}


def _fixed_inputs(request: GateRequest) -> dict[str, str]:
    digests = {"manifest": request.dataset_digest, "champion": request.champion and request.champion.digest}
    for name, folder in (("project_checks", request.project_checks_folder), ("incidents", request.incidents_folder)):
        if folder is not None and folder.is_dir():
            digests[name] = digest_folder(folder)
    return {name: digest for name, digest in digests.items() if digest}


def _describe_rows(hearing: Hearing) -> tuple[dict[str, str], dict[str, int]]:
    """Digests and numbers of rows, as far as they could be read."""
    digests: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name in ("test", "train"):
        try:
            rows = hearing.test if name == "test" else hearing.train
        except NotEvaluableError:
            continue
        digests[name], counts[name] = rows.digest, len(rows)
    return digests, counts
