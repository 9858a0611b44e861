"""Weak slices: where is the model worst? A screen over all inputs and groups, not only the declared ones.

A regression tree on one half of the test rows cuts the inputs where mistakes gather; its worst leaf is measured on the
other half, so the bound is not that of a maximum. Source of the idea: Slice Finder, Chung et al., ICDE 2019.
Leaves to others: slices that the policy declares (quality.py, `by`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.quality import claim_at_least
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.rows import Rows
from mlops.evaluation.screen_rules import WeakSlicesRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

LARGEST_TREE = 16
SHOWN = 5


def check_weak_slices(rule: WeakSlicesRule, hearing: Hearing) -> Findings:
    """Share of right answers in the worst leaf, found and measured on different rows.

    Raises:
        NotEvaluableError: Too few rows for two slices.
    """
    rows, is_right = hearing.test, hearing.test_answers.classes == hearing.test.labels
    if len(rows) < 4 * rule.least_rows:
        raise NotEvaluableError("too-few-rows", f"{len(rows)} rows hold no two slices of {rule.least_rows} twice")
    order = np.random.default_rng(hearing.seed_of(rule.name)).permutation(len(rows))
    searched, measured = np.sort(order[::2]), np.sort(order[1::2])
    matrix, names, values = _matrix(rows)
    tree = _grow(matrix[searched], ~is_right[searched], least=rule.least_rows, seed=hearing.seed_of(rule.name))
    leaf_searched, leaf_measured = tree.apply(matrix[searched]), tree.apply(matrix[measured])
    found = []
    for leaf in np.unique(leaf_searched):
        inside = is_right[measured][leaf_measured == leaf]
        expected = float(is_right[searched][leaf_searched == leaf].mean())
        if inside.size:
            found.append((expected, int(leaf), inside))
    found.sort(key=lambda item: (item[0], item[1]))
    _, worst, inside = found[0]
    spelled = _spell(tree.tree_, worst, names=names, values=values)
    claim = claim_at_least(spelled, inside, minimum=rule.minimum, alpha=hearing.policy.alpha)
    table = [
        {
            "slice": _spell(tree.tree_, leaf, names=names, values=values),
            "accuracy": float(right.mean()),
            "n": right.size,
        }
        for _, leaf, right in found[:SHOWN]
    ]
    return Findings((claim,), {"weak_slices": table})


def _grow(matrix: NDArray[np.float64], is_wrong: NDArray[np.bool_], *, least: int, seed: int) -> Any:
    from sklearn.tree import DecisionTreeRegressor  # slow to load

    tree = DecisionTreeRegressor(max_leaf_nodes=LARGEST_TREE, min_samples_leaf=least, random_state=seed % 2**31)
    return tree.fit(matrix, is_wrong.astype(np.float64))


def _matrix(rows: Rows) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Numbers as they are, one column per value of a category; of a tensor its mean and spread.

    Returns:
        The matrix, and for each column its name and the value it stands for (empty for numbers).
    """
    columns, names, values = [], [], []
    for name, feature in sorted(rows.features.items()):
        if feature.ndim > 1:
            flat = feature.reshape(len(rows), -1)
            columns += [flat.mean(axis=1), flat.std(axis=1)]
            names += [f"mean of {name}", f"spread of {name}"]
            values += ["", ""]
        elif feature.dtype.kind == "f":
            columns.append(feature)
            names.append(name)
            values.append("")
    for name, group in sorted(rows.groups.items()):
        for value in np.unique(group):
            columns.append(group == value)
            names.append(name)
            values.append(str(value))
    return np.column_stack(columns).astype(np.float64), names, values


def _spell(tree: Any, leaf: int, *, names: list[str], values: list[str]) -> str:
    """The conditions on the way from the root to a leaf."""
    parents = {int(child): node for node in range(tree.node_count) for child in (tree.children_left[node],
               tree.children_right[node]) if child >= 0}  # fmt: skip
    said: list[str] = []
    node = leaf
    while node in parents:
        parent = parents[node]
        is_left, column = int(tree.children_left[parent]) == node, int(tree.feature[parent])
        if values[column]:
            said.append(f"{names[column]} {'is not' if is_left else 'is'} {values[column]}")
        else:
            said.append(f"{names[column]} {'at most' if is_left else 'above'} {tree.threshold[parent]:.4g}")
        node = parent
    return " and ".join(reversed(said)) or "all rows"
