"""Claims about artefact and rows: parity with the torch module, size, no test row among the training rows.

These are facts, not estimates. Leaves to others: the probe of the running image (mlops/serving).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import OverlapRule, ParityRule, SizeRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.rows import Rows
from mlops.evaluation.screen_rules import LatencyRule
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_parity(rule: ParityRule, hearing: Hearing) -> Findings:
    """Largest difference of probabilities between model.onnx and the module on the gate's rows: a fact, no estimate."""
    difference, rows = hearing.parity()
    # Reported to a power of ten: the last bits depend on the machine's vector width.
    rounded = 0.0 if difference == 0 else float(f"{difference:.0e}")
    return Findings(
        (state_fact("all rows", rounded, maximum=rule.maximum, n=rows, is_good=difference <= rule.maximum),)
    )


def check_size(rule: SizeRule, hearing: Hearing) -> Findings:
    """Megabytes of the artefact that will serve."""
    megabytes = hearing.model.bytes_of_artefact / 1e6
    is_good = megabytes <= rule.maximum_megabytes
    return Findings(
        (state_fact(hearing.model.name_of_artefact, megabytes, maximum=rule.maximum_megabytes, n=1, is_good=is_good),)
    )


def check_latency(rule: LatencyRule, hearing: Hearing) -> Findings:
    """Share of calls with one row that take no longer than the budget; the seconds themselves are not reported.

    Calls follow one another on one thread after a tenth of them as a warm-up.
    """
    rows = hearing.test.sample(rule.calls, seed=hearing.seed_of(rule.name))
    singles = [{name: values[at : at + 1] for name, values in rows.features.items()} for at in range(len(rows))]
    for single in singles[: len(singles) // 10]:
        hearing.model.answer(single)
    is_slow = []
    for single in singles:
        started = time.perf_counter_ns()
        hearing.model.answer(single)
        is_slow.append(time.perf_counter_ns() - started > rule.maximum_milliseconds * 1e6)
    # counted in steps of a tenth of what is allowed, so that the same model on the same machine gives the same digest
    allowed = 1 - rule.share
    share = np.ceil(10 * float(np.mean(is_slow)) / allowed) * allowed / 10
    text = f"calls with one row that take longer than {rule.maximum_milliseconds:g} ms on one thread"
    claim = state_fact("slow calls", float(share), maximum=allowed, n=len(rows), is_good=bool(share <= allowed + 1e-12))
    return Findings((replace(claim, text=text),))


def check_overlap(rule: OverlapRule, hearing: Hearing) -> Findings:
    """Share of test rows found among the training rows; of exactly these rows, so without bounds."""
    test, train = (_keys(rows, on=rule.on) for rows in (hearing.test, hearing.train))
    known = set(train)
    found = sum(1 for key in test if key in known)
    share = found / len(test)
    claim = state_fact(f"by {rule.on}", share, maximum=rule.maximum, n=len(test), is_good=share <= rule.maximum)
    return Findings((replace(claim, text=f"{found:,} of {len(test):,} test rows are also training rows"),))


def _keys(rows: Rows, *, on: str) -> list[bytes]:
    if on == "content":
        return rows.content_keys()
    if rows.subjects is None:
        raise NotEvaluableError("subject-missing", "the rows have no subject column: persons cannot be compared")
    return rows.subjects.tolist()


def state_fact(name: str, value: float, *, maximum: float, n: int, is_good: bool) -> Claim:
    """A claim about a quantity that was measured exactly, so without bounds."""
    evidence = Evidence(value, value, value, p_good=0.0 if is_good else 1.0, p_bad=1.0 if is_good else 0.0)
    return Claim(name, "at most", maximum, n=n, evidence=evidence)
