"""Several decisions at once: Holm's procedure. Leaves to others: what the p-values are."""

from __future__ import annotations

from collections.abc import Mapping


def reject_by_holm(p_values: Mapping[str, float], *, alpha: float) -> frozenset[str]:
    """Hypotheses rejected so that the chance of even one false rejection is at most `alpha`, however they depend.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    rejected: set[str] = set()
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    for position, (name, p_value) in enumerate(ordered):
        if p_value > alpha / (len(ordered) - position):
            break
        rejected.add(name)
    return frozenset(rejected)
