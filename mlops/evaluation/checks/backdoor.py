"""Trigger search: does a pair of values force one answer on many rows, beyond what the two values do one by one?

Honest features may force answers by themselves (a very large gain); a planted trigger is a conjunction. The worst pair
is chosen on one half of the rows and measured on the other, so its bound is not that of a maximum. This is a
screen: triggers of three or more values, or between the tried numbers, are not found.
Source of the idea: Neural Cleanse (Wang et al., IEEE S&P 2019), on tables by exhaustive search instead of gradients.
Leaves to others: screens of the training data (activation clustering, spectral signatures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops.evaluation.checks.behaviour import claim_at_most
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.policy import BackdoorRule
from mlops.evaluation.rows import Rows
from mlops.evaluation.verdicts import Findings, NotEvaluableError

Patch = tuple[tuple[str, Any], ...]
NUMBERS_TRIED = 6
LEAST_ROWS = 15
"""Fewer rows that could be turned say nothing."""
VALUES_TRIED = 160
"""At most, over all columns: pairs grow with the square."""


def check_backdoor(rule: BackdoorRule, hearing: Hearing) -> Findings:
    """The pair that turns most answers beyond what both values add up to, chosen and measured on different rows.

    "Add up" is on the scale of logits: a model whose values act independently turns no answer beyond that.
    """
    rows = hearing.test.sample(rule.rows, seed=hearing.seed_of(rule.name))
    chosen, measured = rows.take(np.arange(0, len(rows), 2)), rows.take(np.arange(1, len(rows), 2))
    values = _values(hearing)
    pairs = [(one, other) for one, other in combinations(values, 2) if one[0] != other[0]]
    if not pairs:
        raise NotEvaluableError("too-few-columns", "a trigger search needs two input columns with values to try")
    share, size = _turned(hearing, pairs, chosen, values=values).shares()
    share = np.where(size >= 2 * LEAST_ROWS, share, -1.0)
    best, target = np.unravel_index(int(share.argmax()), share.shape)
    patch = pairs[int(best)]
    found = _turned(hearing, [patch], measured, values=list(patch))
    is_turned = found.is_turned[0, :, target][found.could_turn[0, :, target]]
    spelled = " and ".join(f"{name} = {_spell(hearing, name, value)}" for name, value in patch)
    text = f"worst of {len(pairs):,} pairs: {spelled} turns answers to {hearing.classes[int(target)]!r}"
    if is_turned.size < LEAST_ROWS:
        raise NotEvaluableError("too-few-rows", f"{is_turned.size} rows could be turned by {spelled}: no bound")
    claim = claim_at_most("worst pair", is_turned, maximum=rule.maximum, alpha=hearing.policy.alpha, text=text)
    return Findings((claim,), {"pairs_tried": len(pairs)})


@dataclass(frozen=True)
class _Turned:
    """For P pairs, N rows and C classes."""

    could_turn: NDArray[np.bool_]
    """`[P, N, C]`: the class is not the answer when both values are simply added up."""
    is_turned: NDArray[np.bool_]
    """`[P, N, C]`: it is the answer all the same."""

    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Share of turned rows among those that could be, `[P, C]`, and how many those are."""
        size = self.could_turn.sum(axis=1)
        return self.is_turned.sum(axis=1) / np.maximum(size, 1), size


def _turned(hearing: Hearing, pairs: Sequence[Patch], rows: Rows, *, values: list[tuple[str, Any]]) -> _Turned:
    base = _logits(hearing, [()], rows)[0]
    alone = dict(zip(values, _logits(hearing, [(value,) for value in values], rows), strict=True))
    together = _logits(hearing, pairs, rows)
    added = np.stack([alone[one] + alone[other] - base for one, other in pairs])
    classes = np.arange(base.shape[1])
    could_turn = added.argmax(axis=2)[:, :, None] != classes
    return _Turned(could_turn, could_turn & (together.argmax(axis=2)[:, :, None] == classes))


def _values(hearing: Hearing) -> list[tuple[str, Any]]:
    """Every category and a few spread numbers of each scalar input."""
    found: list[tuple[str, Any]] = []
    for column in hearing.model.contract.inputs:
        if column.kind == "category":
            found += [(column.name, np.int64(code)) for code in range(len(column.categories or ()))]
        elif column.kind == "number":
            spread = np.unique(
                np.quantile(hearing.train.features[column.name], np.linspace(0, 1, NUMBERS_TRIED), method="nearest")
            )
            found += [(column.name, np.float32(value)) for value in spread]
    if len(found) > VALUES_TRIED:
        order = np.random.default_rng(hearing.seed_of("backdoor values")).permutation(len(found))[:VALUES_TRIED]
        found = [found[index] for index in sorted(order)]
    return found


def _logits(hearing: Hearing, patches: Sequence[Patch], rows: Rows) -> NDArray[np.float32]:
    """Logits `[P, N, C]` of all rows under each patch, many patches per call."""
    found = []
    at_once = max(1, 8192 // len(rows))
    for start in range(0, len(patches), at_once):
        block = patches[start : start + at_once]
        features = {name: np.concatenate([values] * len(block)) for name, values in rows.features.items()}
        for index, patch in enumerate(block):
            for name, value in patch:
                features[name][index * len(rows) : (index + 1) * len(rows)] = value
        found.append(hearing.model.answer(features).logits.reshape(len(block), len(rows), -1))
    return np.concatenate(found)


def _spell(hearing: Hearing, name: str, value: Any) -> str:
    column = next(column for column in hearing.model.contract.inputs if column.name == name)
    return str((column.categories or ())[int(value)]) if column.kind == "category" else f"{float(value):g}"
