"""The gate: START HERE. Hear every check of the policy, each within its time, then decide on all evidence at once.

Leaves to others: the checks (checks/), the rule of decision (decisions.py), pages for people (report.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops.clock import SECOND_US, Clock
from mlops.errors import Refusal
from mlops.evaluation.attributes_table import join_attributes
from mlops.evaluation.check_cache import CheckCache
from mlops.evaluation.check_crew import CheckCrew, Heard, KnownChecks, hear_checks
from mlops.evaluation.checks.table import CHECKS
from mlops.evaluation.decisions import combine_verdicts, decide_claims, explain_verdict
from mlops.evaluation.fork_crew import ForkCrew, call_apart
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import Answers, JudgedModel, load_judged
from mlops.evaluation.libraries import load_libraries
from mlops.evaluation.model_card import describe_model
from mlops.evaluation.plain_reference import price_fairness
from mlops.evaluation.policy import AnyRule, Policy
from mlops.evaluation.reference_membership import AuditPool
from mlops.evaluation.rows import rows_of_table
from mlops.evaluation.signed_answers import Signed, SignedAnswers, Verify, refuse_all
from mlops.evaluation.twins import Twin
from mlops.evaluation.verdicts import CheckResult, Findings, GateResult, JudgedClaim, NotEvaluableError, Verdict
from mlops.provenance.digest import digest_code, digest_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops.datasets.schema import Schema
    from mlops.training.candidate import Candidate

AHEAD_SECONDS = 120.0
"""How long the answers on all rows may take; after it each check works them out within its own limit."""


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
    twins: tuple[Twin, ...] = ()
    """Finished trials of the candidate's sweep beside the winner."""
    attributes: pa.Table | None = None
    """Sensitive attributes by subject, joined here only."""
    waivers: tuple[Signed, ...] = ()
    statements: tuple[Signed, ...] = ()
    """Answers to clauses of the values that no check can give."""
    verify_signature: Verify = refuse_all
    """Whether the signature of a waiver or statement holds, by somebody who may give it."""
    dataset_digest: str | None = None
    """Manifest digest of the rows; a candidate trained on another version is not evaluable."""
    checks_at_once: int = 0
    """0 is one for each core."""
    cache_folder: Path | None = None
    """Where findings of single checks are kept and found again."""
    keys_folder: Path | None = None
    """Hidden from the candidate's own code."""
    on_finished: Callable[[str, float], None] = lambda name, seconds: None
    """Called with each check's name and seconds, for progress."""


OpenCrew = Callable[[], CheckCrew | Refusal]
"""Opens the place where checks run; the gate closes it."""


def run_gate(request: GateRequest, *, open_crew: OpenCrew | None = None) -> GateResult | Refusal:
    """Judge a candidate.

    The result is a function of the request's values: neither the order of rows, nor the number of checks at once, nor
    where they run, nor the time of day changes it.

    Args:
        request: What is judged, and on what.
        open_crew: Where the checks run; None is child processes of this one.

    Returns:
        The result; a refusal when the crew's lease was not granted or could not be paid on.
    """
    hearing, inputs = open_hearing(request), _fixed_inputs(request)
    return judge_hearing(
        hearing,
        candidate=request.candidate.digest,
        clock=request.clock,
        inputs=inputs,
        open_crew=open_crew,
        checks_at_once=request.checks_at_once,
        known=None if request.cache_folder is None else _open_cache(request.cache_folder, hearing, request, inputs),
        hidden=request.keys_folder,
        on_finished=request.on_finished,
        signed=SignedAnswers(request.waivers, request.statements, request.verify_signature),
    )


def judge_hearing(
    hearing: Hearing,
    *,
    candidate: str,
    clock: Clock,
    inputs: dict[str, str],
    open_crew: OpenCrew | None = None,
    checks_at_once: int = 0,
    known: KnownChecks | None = None,
    hidden: Path | None = None,
    on_finished: Callable[[str, float], None] = lambda name, seconds: None,
    signed: SignedAnswers | None = None,
) -> GateResult | Refusal:
    """Hear all checks of the policy and decide; `inputs` are digests of what is not laid before the hearing itself."""
    policy = hearing.policy
    digests, counts = _describe_rows(hearing)
    with _one_thread_each():
        if open_crew is None:
            load_libraries(rule.kind for rule in policy.checks)
        answer_ahead(hearing, hidden=hidden)
        # before Ray is connected: a process should not fork while others of its threads talk
        context = call_apart(partial(_context, hearing), time_limit=AHEAD_SECONDS, hidden=hidden) or {}
        size = checks_at_once or count_cores()
        crew = open_crew() if open_crew else ForkCrew(partial(hear_rule, hearing=hearing), size=size, hidden=hidden)
        if isinstance(crew, Refusal):
            return crew
        heard = hear_checks(policy.checks, crew=crew, clock=clock, known=known, on_finished=on_finished)
        if isinstance(heard, Refusal):
            return heard
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
        context=context,
    )


def hear_rule(rule: AnyRule, *, hearing: Hearing) -> Findings:
    """Run one check where this is called."""
    return CHECKS[rule.kind](rule, hearing)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer_ahead(hearing: Hearing, *, hidden: Path | None = None) -> None:
    """Let a child answer all rows once, for all checks; what fails is left to each check, which says why."""

    def answer() -> dict[str, Answers]:
        found = {"test answers": hearing.test_answers}
        if any(rule.kind == "membership" for rule in hearing.policy.checks):
            found["train answers"] = hearing.train_answers
        return found

    for key, value in (call_apart(answer, time_limit=AHEAD_SECONDS, hidden=hidden) or {}).items():
        hearing.once(key, partial(_same, value))


def _same(value: Answers) -> Answers:
    return value


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
        load_test=lambda: join_attributes(rows_of_table(request.test, schema=request.schema), request.attributes),
        load_train=lambda: join_attributes(rows_of_table(request.train, schema=request.schema), request.attributes),
        load_champion=None if champion is None else load_champion,
        classes=tuple(request.schema.label.categories or ()),
        dataset_digest=request.dataset_digest,
        seed=request.seed,
        project_checks_folder=request.project_checks_folder,
        incidents_folder=request.incidents_folder,
        audit=request.audit,
        twins=request.twins,
        now_us=request.clock.now_us(),
    )


def decide_checks(policy: Policy, heard: dict[str, Heard]) -> tuple[CheckResult, ...]:
    """Verdicts of all checks, from everything that was heard."""
    evaluable = {name: one.findings for name, one in heard.items() if not one.code}
    for name, one in list(evaluable.items()):
        if any(_is_broken(claim.evidence) for claim in one.claims):
            heard[name] = replace(
                heard[name],
                findings=Findings(()),
                code="not-finite",
                text="the check gave NaN instead of evidence",
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


def _result(rule: AnyRule, heard: Heard, judged: tuple[JudgedClaim, ...] | None) -> CheckResult:
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
    found: dict[str, Any] = {}
    with suppress(Exception):
        found["model"] = describe_model(hearing.policy, hearing.model.contract)
    with suppress(Exception):
        price = price_fairness(hearing)
        if price:
            found["price_of_fairness"] = price
    return found


def _fixed_inputs(request: GateRequest) -> dict[str, str]:
    digests = {
        "manifest": request.dataset_digest,
        "champion": request.champion and request.champion.digest,
        "audit": request.audit and request.audit.digest,
    }
    for name, folder in (("project_checks", request.project_checks_folder), ("incidents", request.incidents_folder)):
        if folder is not None and folder.is_dir():
            digests[name] = digest_folder(folder)
    return {name: digest for name, digest in digests.items() if digest}


def _open_cache(folder: Path, hearing: Hearing, request: GateRequest, inputs: dict[str, str]) -> CheckCache:
    """Findings depend on model, rows, champion, this code, the seed and the head of the policy."""
    policy = request.policy
    fixed = {name: digest for name, digest in inputs.items() if name not in {"incidents", "project_checks", "audit"}}
    shared = {
        **fixed,
        **_describe_rows(hearing)[0],
        "candidate": request.candidate.digest,
        "code": digest_code("mlops.evaluation"),
        "seed": request.seed,
        "alpha": policy.alpha,
        "constraints": [one.model_dump(mode="json") for one in policy.constraints],
        "favourable": policy.favourable_class,
        "classes": list(hearing.classes),
    }
    twins = [[twin.digest, twin.distance] for twin in request.twins]
    today = datetime.fromtimestamp(hearing.now_us / SECOND_US, tz=UTC).date().isoformat()
    of_kind: dict[str, dict[str, Any]] = {
        "incidents": {"cases": inputs.get("incidents", ""), "today": today},
        "attribution": {"twins": twins},
        "arbitrary-decisions": {"twins": twins},
        "project": {"functions": inputs.get("project_checks", "")},
        "reference-membership": {"audit": inputs.get("audit", "")},
    }
    return CheckCache(folder, inputs=shared, of_kind=of_kind)


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
