"""When a whole sweep ends before its last trial, by what its best trial reached.

Leaves to others: its deadline and its spend (mlops/training/sweep_driver), pruning single trials (optuna_search).
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops.training.spec import SweepSpec


def find_early_stop(spec: SweepSpec, *, best: int, metrics: Mapping[str, float], told: int) -> str:
    """Why the sweep ends now, or "".

    Args:
        spec: Of the sweep.
        best: Number of its best trial so far.
        metrics: Of that trial.
        told: Trials whose end is known, in number order.
    """
    stop, objective = spec.stop, spec.objectives[0]
    value = metrics[objective.metric]
    is_sound = all(constraint.violation(dict(metrics)) <= 0 for constraint in spec.constraints)
    if stop.target is not None and is_sound:
        is_reached = value <= stop.target if objective.direction == "minimize" else value >= stop.target
        if is_reached:
            return f"trial {best} reached the target: {objective.metric} {value:.4g}"
    if stop.plateau_trials is not None and told - 1 - best >= stop.plateau_trials:
        return f"no trial was better than trial {best} for {stop.plateau_trials} trials"
    return ""
