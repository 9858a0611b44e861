"""Claims about artefact and rows: parity with the torch module, size, no test row among the training rows.

These are facts, not estimates. Leaves to others: the probe of the running image (mlops/serving).
"""

from __future__ import annotations

from dataclasses import replace

from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import OverlapRule, ParityRule, SizeRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_parity(rule: ParityRule, hearing: Hearing) -> Findings:
    """Largest difference of probabilities between model.onnx and the module on the gate's rows: a fact, no estimate."""
    difference, rows = hearing.parity()
    # Reported to a power of ten: the last bits depend on the machine's vector width.
    rounded = 0.0 if difference == 0 else float(f"{difference:.0e}")
    return Findings((_fact("all rows", rounded, maximum=rule.maximum, n=rows, is_good=difference <= rule.maximum),))


def check_size(rule: SizeRule, hearing: Hearing) -> Findings:
    """Megabytes of the artefact that will serve."""
    megabytes = hearing.model.bytes_of_artefact / 1e6
    is_good = megabytes <= rule.maximum_megabytes
    return Findings((_fact("model.onnx", megabytes, maximum=rule.maximum_megabytes, n=1, is_good=is_good),))


def check_overlap(rule: OverlapRule, hearing: Hearing) -> Findings:
    """Share of test rows found among the training rows; of exactly these rows, so without bounds."""
    test, train = (_keys(rows, on=rule.on) for rows in (hearing.test, hearing.train))
    known = set(train)
    found = sum(1 for key in test if key in known)
    share = found / len(test)
    claim = _fact(f"by {rule.on}", share, maximum=rule.maximum, n=len(test), is_good=share <= rule.maximum)
    return Findings((replace(claim, text=f"{found:,} of {len(test):,} test rows are also training rows"),))


def _keys(rows: Rows, *, on: str) -> list[bytes]:
    if on == "content":
        return rows.content_keys()
    if rows.subjects is None:
        raise NotEvaluableError("subject-missing", "the rows have no subject column: persons cannot be compared")
    return rows.subjects.tolist()


def _fact(name: str, value: float, *, maximum: float, n: int, is_good: bool) -> Claim:
    evidence = Evidence(value, value, value, p_good=0.0 if is_good else 1.0, p_bad=1.0 if is_good else 0.0)
    return Claim(name, "at most", maximum, n=n, evidence=evidence)
