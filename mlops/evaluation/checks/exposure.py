"""Canary exposure: the audit pool's rows, put into the training by chance, are the canaries.

A canary's exposure is how many bits easier the model makes it to pick from rows that were left out by the same chance:
`-log2` of the share of strangers that look more trained than it does. Untrained rows have 1.44 bits on average.
Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, section 4.3 (exposure by sampling).
Leaves to others: the score of a row (reference_membership.py).
"""

from __future__ import annotations

import numpy as np

from mlops.evaluation import means
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.privacy_rules import ExposureRule
from mlops.evaluation.reference_membership import membership_scores
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_exposure(rule: ExposureRule, hearing: Hearing) -> Findings:
    """Mean exposure of the trained canaries, with a bound; the most exposed one is named beside it.

    Raises:
        NotEvaluableError: The sweep left no audit pool, or too small a one.
    """
    pool = hearing.audit
    if pool is None:
        raise NotEvaluableError("no-references", "the sweep left no audit pool: there are no canaries")
    scores = membership_scores(pool.target, pool.references, pool.membership)
    canaries, strangers = scores[pool.is_member], np.sort(scores[~pool.is_member])
    if min(canaries.size, strangers.size) < 50:
        raise NotEvaluableError(
            "too-few-rows", f"{canaries.size} canaries and {strangers.size} strangers give no bound"
        )
    above = strangers.size - np.searchsorted(strangers, canaries, side="left")
    bits = -np.log2((above + 1) / (strangers.size + 1))
    evidence = means.assess_mean_at_most(bits, maximum=rule.maximum_bits, alpha=hearing.policy.alpha)
    text = f"most exposed {bits.max():.1f} of {np.log2(strangers.size + 1):.1f} measurable bits; strangers have 1.44"
    claim = Claim("mean exposure, bits", "at most", rule.maximum_bits, n=bits.size, evidence=evidence, text=text)
    return Findings((claim,), {"exposure_bits": {"mean": float(bits.mean()), "most": float(bits.max())}})
