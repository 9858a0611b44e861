"""Claims about the artefact itself: that it answers like the torch module. Leaves to others: the probe of the image."""

from __future__ import annotations

from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import ParityRule
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings


def check_parity(rule: ParityRule, hearing: Hearing) -> Findings:
    """Largest difference of probabilities between model.onnx and the module on the gate's rows: a fact, no estimate."""
    difference, rows = hearing.parity()
    # Reported to a power of ten: the last bits depend on the machine's vector width.
    rounded = 0.0 if difference == 0 else float(f"{difference:.0e}")
    is_good = difference <= rule.maximum
    evidence = Evidence(
        estimate=rounded,
        lower=rounded,
        upper=rounded,
        p_good=0.0 if is_good else 1.0,
        p_bad=1.0 if is_good else 0.0,
    )
    return Findings((Claim("all rows", "at most", rule.maximum, n=rows, evidence=evidence),))
