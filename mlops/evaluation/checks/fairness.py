"""Gaps between groups: selection rate (demographic parity), equalized odds, equal opportunity.

fairlearn gives the definitions and the table by group; its bootstrap is not used (it raises false alarms in every fair
case with ten groups of fifty), its silent answers for NaN, empty cells and single groups neither: counts are taken here
and judged by score tests (gaps.py). Leaves to others: the price of fairness (plain_reference.py).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation import rates
from mlops.evaluation.gaps import GapEvidence, RateTable, assess_gap
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import GapRule
from mlops.evaluation.ratios import assess_ratio
from mlops.evaluation.verdicts import Claim, Findings, NotEvaluableError

Mask = NDArray[np.bool_]
Names = NDArray[np.str_]
RATES = {
    "selection-rate-gap": ("selection rate",),
    "equal-opportunity-gap": ("true positive rate",),
    "equalized-odds-gap": ("true positive rate", "false positive rate"),
}


def check_gap(rule: GapRule, hearing: Hearing) -> Findings:
    """The largest gap (and smallest ratio, if asked) between groups, within each control group if there are any."""
    rows, answers = hearing.test, hearing.test_answers.classes
    codes = _codes(rule, hearing)
    groups, controls = rows.group_by(rule.by), rows.group_by(rule.within)
    claims = []
    for control in np.unique(controls):
        mask = controls == control
        name = " × ".join(rule.by) + ("" if not rule.within else f" within {control}")
        tables = tuple(
            replace(table, rate=f"{table.rate} of {hearing.classes[code]}" if rule.classes else table.rate)
            for code in codes
            for table in rate_tables(
                groups[mask], (answers == code)[mask], (rows.labels == code)[mask], wanted=RATES[rule.kind]
            )
        )
        n = int(mask.sum())
        claims.append(_claim(name, tables, rule=rule, alpha=hearing.policy.alpha, n=n))
        if rule.minimum_ratio is not None:
            claims.append(_claim_ratio(name, tables, rule=rule, alpha=hearing.policy.alpha, n=n))
    selected, positive = answers == codes[0], rows.labels == codes[0]
    details = {
        "by_group": group_table(groups, selected, positive, alpha=hearing.policy.alpha),
        "rates": list(RATES[rule.kind]),
        "fairlearn": fairlearn_table(groups, selected, positive),
    }
    return Findings(tuple(claims), details)


def _codes(rule: GapRule, hearing: Hearing) -> list[int]:
    strangers = [name for name in rule.classes if name not in hearing.classes]
    if strangers:
        raise NotEvaluableError("class-missing", f"there is no class {', '.join(strangers)} to compare")
    return [hearing.classes.index(name) for name in rule.classes] or [hearing.favourable]


def _claim_ratio(name: str, tables: tuple[RateTable, ...], *, rule: GapRule, alpha: float, n: int) -> Claim:
    assert rule.minimum_ratio is not None
    minimum, title = rule.minimum_ratio, f"{name}, ratio"
    found = None
    if len(tables[0].groups) > 1:
        found = assess_ratio(tables, minimum=minimum, alpha=alpha, minimum_denominator=rule.minimum_denominator)
    if found is None:
        text = "no two groups have rows and events to compare"
        return Claim(title, "at least", minimum, n=n, evidence=None, code="not-estimable", text=text)
    code = "groups-too-small" if found.too_small else ""
    return Claim(title, "at least", minimum, n=n, evidence=found.evidence, code=code, text=_text(found, "smallest"))


def rate_tables(groups: Names, selected: Mask, positive: Mask, *, wanted: tuple[str, ...]) -> tuple[RateTable, ...]:
    """Counts by group for each wanted rate."""
    among = {"selection rate": np.ones_like(positive), "true positive rate": positive, "false positive rate": ~positive}
    names = [str(name) for name in np.unique(groups)]
    return tuple(
        RateTable(
            rate=rate,
            groups=tuple(names),
            successes=tuple(float((selected & among[rate] & (groups == name)).sum()) for name in names),
            totals=tuple(float((among[rate] & (groups == name)).sum()) for name in names),
        )
        for rate in wanted
    )


def _claim(name: str, tables: tuple[RateTable, ...], *, rule: GapRule, alpha: float, n: int) -> Claim:
    def without(code: str, text: str) -> Claim:
        return Claim(name, "at most", rule.maximum, n=n, evidence=None, code=code, text=text)

    if len(tables[0].groups) < 2:
        return without("single-group", f"all rows are of one group ({tables[0].groups[0]}): nothing to compare")
    empty = [table.rate for table in tables if not any(table.totals)]
    if empty:
        return without("no-positives", f"no row counts for the {' and the '.join(empty)}")
    found = assess_gap(tables, tolerance=rule.maximum, alpha=alpha, minimum_denominator=rule.minimum_denominator)
    if found is None:
        return without("not-estimable", f"fewer than two groups have {rule.minimum_denominator} rows to compare")
    is_open = found.evidence.p_good > alpha or bool(found.too_small)
    return Claim(
        name,
        "at most",
        rule.maximum,
        n=n,
        evidence=found.evidence,
        rows_needed=_rows_needed(found, n=n) if is_open else None,
        code="groups-too-small" if found.too_small else "",
        text=_text(found),
    )


def _rows_needed(found: GapEvidence, *, n: int) -> int | None:
    return None if found.rows_factor is None else max(0, math.ceil(n * (found.rows_factor - 1))) or None


def _text(found: GapEvidence, word: str = "largest") -> str:
    small = f"; too small to test: {', '.join(found.too_small)}" if found.too_small else ""
    return f"{word} between {found.worst}{small}"


def group_table(groups: Names, selected: Mask, positive: Mask, *, alpha: float) -> list[dict[str, Any]]:
    """One row per group and rate with exact bounds, for the report."""
    wanted = ("selection rate", "true positive rate", "false positive rate")
    table: list[dict[str, Any]] = []
    for counts in rate_tables(groups, selected, positive, wanted=wanted):
        for group, hits, total in zip(counts.groups, counts.successes, counts.totals, strict=True):
            row: dict[str, Any] = {"rate": counts.rate, "group": group, "hits": int(hits), "n": int(total)}
            if total:
                lower, upper = rates.clopper_pearson(int(hits), int(total), alpha=alpha)
                row |= {"estimate": hits / total, "lower": lower, "upper": upper}
            table.append(row)
    return table


def fairlearn_table(groups: Names, selected: Mask, positive: Mask) -> dict[str, Any]:
    """fairlearn's own numbers beside ours: the largest gap and the smallest ratio of each rate, as it defines them.

    Raises:
        NotEvaluableError: fairlearn does not take the rows.
    """
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate  # slow to load

    metrics = {
        "selection rate": selection_rate,
        "true positive rate": true_positive_rate,
        "false positive rate": false_positive_rate,
    }
    try:
        frame = MetricFrame(
            metrics=metrics,
            y_true=positive.astype(int),
            y_pred=selected.astype(int),
            sensitive_features=groups.astype(object),
        )
        gaps, ratios = frame.difference(), frame.ratio()
    except Exception as error:
        raise NotEvaluableError("fairlearn-crashed", f"fairlearn does not take these rows: {error}") from error
    return {rate: {"difference": _finite(gaps[rate]), "ratio": _finite(ratios[rate])} for rate in metrics}


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
