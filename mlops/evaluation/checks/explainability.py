"""On what the answers rest, and how much of that is chance: attributions, and decisions that near-equal trials reverse.

Sources: predictive multiplicity of Marx, Calmon & Ustun (ICML 2020). Leaves to others: computing attributions
(attributions.py), which trials are near-equal (twins.py), explaining one row to a person (explaining.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import attributions, means
from mlops.evaluation.attributions import Attributions
from mlops.evaluation.behaviour_rules import ArbitrarinessRule, AttributionRule
from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.judged import columns_as_tensors
from mlops.evaluation.rates import Evidence
from mlops.evaluation.rows import Rows
from mlops.evaluation.twins import Twin, near
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError


def check_attribution(rule: AttributionRule, hearing: Hearing) -> Findings:
    """Completeness, the share of proxies, and how much moves with another seed or with a twin."""
    if attributions.has_tensors(hearing.model.contract):
        hearing.require_parity()  # gradients are the module's
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    first = _attribute(rule, hearing, rows, seed=hearing.seed_of(f"{rule.name} 1"))
    claims = [_completeness(rule, first)]
    if rule.maximum_share is not None:
        claims.append(_proxy_share(rule, first, hearing, maximum=rule.maximum_share))
    if rule.maximum_seed_change is not None:
        again = _attribute(rule, hearing, rows, seed=hearing.seed_of(f"{rule.name} 2"))
        moved = attributions.moved_share(first, again)
        claims.append(_mean_at_most("moved by another seed", moved, rule.maximum_seed_change, hearing))
    if rule.maximum_twin_change is not None:
        claims.append(_twin_change(rule, hearing, rows, first, maximum=rule.maximum_twin_change))
    shares = sorted(first.column_shares().items(), key=lambda item: -item[1])
    return Findings(tuple(claims), {"attributions": [{"column": name, "share": share} for name, share in shares]})


def check_arbitrary_decisions(rule: ArbitrarinessRule, hearing: Hearing) -> Findings:
    """Share of test rows that at least one near-equal trial decides otherwise.

    Raises:
        NotEvaluableError: Too few near-equal trials are known.
    """
    twins = require_twins(hearing, within=rule.objective_within, least=rule.least_twins)
    own = hearing.test_answers.classes
    others = np.stack([_answers_of(twin, hearing) for twin in twins])
    is_arbitrary = (others != own).any(axis=0)
    near_ones = f"{len(twins)} trials within {rule.objective_within:g} of the winner's objective"
    text = f"rows that some of {near_ones} decide otherwise"
    claim = claim_at_most("all", is_arbitrary, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text)
    table = [
        {"trial": twin.trial, "share": float((answers != own).mean())}
        for twin, answers in zip(twins, others, strict=True)
    ]
    return Findings((claim,), {"twins": table})


def require_twins(hearing: Hearing, *, within: float, least: int = 1) -> tuple[Twin, ...]:
    """The near-equal trials.

    Raises:
        NotEvaluableError: Too few.
    """
    found = near(hearing.twins, within=within)
    if len(found) < least:
        raise NotEvaluableError(
            "no-twins", f"{len(found)} trials of the sweep lie within {within:g} of the winner, {least} are needed"
        )
    return found


def _attribute(rule: AttributionRule, hearing: Hearing, rows: Rows, *, seed: int) -> Attributions:
    return attributions.attribute(
        hearing.model,
        rows.features,
        background=hearing.train.features,
        class_=hearing.favourable,
        seed=seed,
        draws=rule.draws,
    )


def _completeness(rule: AttributionRule, found: Attributions) -> Claim:
    """Every row's attributions must add up; the worst error is said to a power of ten, as its last bits depend on the
    machine's vector width."""
    error = found.completeness_error
    share = float((error > rule.maximum_completeness_error).mean())
    fact = Evidence(share, share, share, p_good=0.0 if share == 0 else 1.0, p_bad=1.0 if share == 0 else 0.0)
    limit = f"{rule.maximum_completeness_error:g}"
    text = f"rows whose grounds miss their answer by more than {limit} log-odds; the worst by {error.max():.0e}"
    return Claim("grounds that do not add up", "at most", 0.0, n=len(error), evidence=fact, text=text)


def _proxy_share(rule: AttributionRule, found: Attributions, hearing: Hearing, *, maximum: float) -> Claim:
    known = set(found.column_shares())
    strangers = [name for name in rule.proxies if name not in known and name not in hearing.test.groups]
    if strangers:
        raise NotEvaluableError("column-missing", f"neither model nor rows have a column {', '.join(strangers)}")
    is_proxy = np.array([name.partition("[")[0] in rule.proxies for name in found.inputs])
    share = np.abs(found.shares())[:, is_proxy].sum(axis=1)
    return _mean_at_most(f"share of {', '.join(rule.proxies)}", share, maximum, hearing)


def _twin_change(rule: AttributionRule, hearing: Hearing, rows: Rows, first: Attributions, *, maximum: float) -> Claim:
    twins = require_twins(hearing, within=rule.objective_within)
    seed = hearing.seed_of(f"{rule.name} 1")  # the same comparisons, so that only the model differs
    moved = [
        attributions.moved_share(
            first,
            attributions.attribute_module(
                twin.load_module(),
                rows.features,
                background=hearing.train.features,
                contract=hearing.model.contract,
                class_=hearing.favourable,
                seed=seed,
                draws=rule.draws,
            ),
        )
        for twin in twins
    ]
    return _mean_at_most(f"moved by one of {len(twins)} twins", np.mean(moved, axis=0), maximum, hearing)


def _mean_at_most(name: str, values: NDArray[np.float64], maximum: float, hearing: Hearing) -> Claim:
    evidence = means.assess_mean_at_most(values, maximum=maximum, alpha=hearing.policy.alpha)
    return Claim(name, "at most", maximum, n=values.size, evidence=evidence)


def _answers_of(twin: Twin, hearing: Hearing) -> NDArray[np.int64]:
    import torch  # costs seconds to load

    try:
        with torch.no_grad():
            logits = twin.load_module()(columns_as_tensors(hearing.test, contract=hearing.model.contract))
    except Exception as error:
        raise NotEvaluableError("twin-crashed", f"trial {twin.trial} does not run: {error}") from error
    found: NDArray[np.int64] = logits.numpy().argmax(axis=1).astype(np.int64)
    return found
