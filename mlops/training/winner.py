"""Which trial wins: the best objective among those that satisfy the constraints, on validation data.

Leaves to others: the gate on test data (mlops/evaluation), which decides with bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlops.errors import Reason, Refusal
from mlops.training.spec import SweepSpec
from mlops.training.sql_trials import COMPLETE, TrialRow


def is_better(spec: SweepSpec, metrics: Mapping[str, float], *, than: Mapping[str, float]) -> bool:
    """Whether a trial is better: smaller violation of the constraints first, then the first objective."""
    return _rank(spec, metrics) < _rank(spec, than)


def choose_winner(spec: SweepSpec, trials: Iterable[TrialRow]) -> TrialRow | Refusal:
    """The winner, or why there is none.

    Ties go to the earlier trial.
    """
    complete = [trial for trial in trials if trial.state == COMPLETE]
    if not complete:
        return Refusal((Reason("no-trial-complete", "no trial came to its last epoch"),))
    best = min(complete, key=lambda trial: (*_rank(spec, trial.metrics), trial.number))
    violated = [constraint for constraint in spec.constraints if constraint.violation(best.metrics) > 0]
    if not violated:
        return best
    reasons = []
    for constraint in violated:
        bound = f"at most {constraint.at_most}" if constraint.at_most is not None else f"at least {constraint.at_least}"
        value = best.metrics.get(constraint.metric)
        text = (
            f"the nearest of {len(complete)} trials, number {best.number}, has {constraint.metric} {value}, not {bound}"
        )
        reasons.append(Reason("constraint-violated", text))
    return Refusal(tuple(reasons))


def _rank(spec: SweepSpec, metrics: Mapping[str, float]) -> tuple[float, float]:
    violation = sum(max(0.0, constraint.violation(dict(metrics))) for constraint in spec.constraints)
    objective = spec.objectives[0]
    value = metrics.get(objective.metric, float("inf"))
    return violation, value if objective.direction == "minimize" else -value
