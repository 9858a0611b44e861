"""The price of fairness: what a plain model, fitted for accuracy alone, would reach and how unfair it is.

Shown in the report, never judged. Leaves to others: the candidate's own numbers (checks/).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.fairness import RATES, rate_tables
from mlops.evaluation.gaps import RateTable
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import GapRule
from mlops.evaluation.rows import Rows


def price_fairness(hearing: Hearing) -> dict[str, Any]:
    """Accuracy and gaps of the candidate and of a plain model, point estimates on the test rows.

    Returns:
        JSON; empty when the policy asks for no gap or the inputs are not a table.
    """
    rules = [rule for rule in hearing.policy.checks if isinstance(rule, GapRule) and not (rule.within or rule.classes)]
    is_table = all(values.ndim == 1 for values in hearing.test.features.values())
    if not rules or not is_table:
        return {}
    test, answers = hearing.test, hearing.test_answers.classes
    plain = _fit_plain(hearing)
    return {
        "candidate": {"accuracy": float((answers == test.labels).mean())},
        "plain": {"accuracy": float((plain == test.labels).mean()), "model": "gradient-boosted trees, all inputs"},
        "gaps": [
            {
                "title": rule.title or rule.name,
                "maximum": rule.maximum,
                "candidate": _gap(rule, test, answers, favourable=hearing.favourable),
                "plain": _gap(rule, test, plain, favourable=hearing.favourable),
            }
            for rule in rules
        ],
    }


def _fit_plain(hearing: Hearing) -> NDArray[np.int64]:
    from sklearn.ensemble import HistGradientBoostingClassifier  # slow to load
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    inputs = hearing.model.contract.inputs
    is_category = [column.kind == "category" and len(column.categories or ()) <= 200 for column in inputs]
    model = HistGradientBoostingClassifier(categorical_features=is_category, max_iter=60, random_state=0)
    train = hearing.train.sample(30_000, seed=hearing.seed_of("plain reference"))
    with threadpool_limits(limits=1):  # the same sums on any number of cores
        model.fit(_matrix(train, [column.name for column in inputs]), train.labels)
        found: NDArray[np.int64] = model.predict(_matrix(hearing.test, [column.name for column in inputs]))
    return found


def _matrix(rows: Rows, names: list[str]) -> NDArray[np.float64]:
    return np.column_stack([rows.features[name].astype(np.float64) for name in names])


def _gap(rule: GapRule, rows: Rows, answers: NDArray[np.int64], *, favourable: int) -> float | None:
    tables = rate_tables(
        rows.group_by(rule.by), answers == favourable, rows.labels == favourable, wanted=RATES[rule.kind]
    )
    gaps = [_spread(table, least=rule.minimum_denominator) for table in tables]
    return max((gap for gap in gaps if gap is not None), default=None)


def _spread(table: RateTable, *, least: int) -> float | None:
    cells = zip(table.successes, table.totals, strict=True)
    values = [hits / total for hits, total in cells if total >= least]
    return max(values) - min(values) if len(values) > 1 else None
