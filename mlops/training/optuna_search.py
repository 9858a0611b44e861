"""Proposals and pruning by Optuna, in a fixed order (the only door to Optuna).

Proposal n sees exactly the results of trials up to n - lag, told in number order, and so does every pruning decision
of trial n; when a trial ended changes nothing. A resumed sweep replays asks and tells from the ledger to the same
state.
Leaves to others: running trials and keeping results (mlops/training/sweep_driver).
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from mlops.training.spec import Choice, Dimension, IntRange, SweepSpec, Value
from mlops.training.sql_trials import COMPLETE, PRUNED, TrialRow

optuna.logging.set_verbosity(optuna.logging.WARNING)
_VIOLATIONS = "violations"


@dataclass(frozen=True)
class Result:
    """What the search learns of an ended trial."""

    state: str
    """COMPLETE, PRUNED or FAILED."""
    metrics: Mapping[str, float]
    """Of the last report."""


class Search:
    """One sweep's search; ask and tell in number order."""

    def __init__(self, spec: SweepSpec, *, earlier: Sequence[TrialRow] = ()) -> None:
        """Begin.

        Args:
            spec: The sweep.
            earlier: Trials of earlier sweeps, which the sampler learns from; those that do not fit the space are left
                out.
        """
        self._spec = spec
        self._study = optuna.create_study(
            directions=[objective.direction for objective in spec.objectives], sampler=_make_sampler(spec)
        )
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._values: dict[int, dict[int, float]] = {}
        self._rungs: dict[int, tuple[optuna.Study, optuna.trial.Trial]] = {}
        self._past: list[optuna.trial.FrozenTrial] = []
        self._study.add_trials(known := fit_earlier(spec, earlier))
        self.known = len(known)
        """Trials of earlier sweeps that the sampler learns from."""
        for point in (*spec.first, *(_grid(spec) if spec.sampler == "grid" else ())):
            self._study.enqueue_trial(dict(point))
        self.told = 0
        """Trials 0 … told - 1 have been told."""

    def propose(self, number: int) -> dict[str, Value]:
        """The parameters of trial `number`; the one before must have been proposed, and number - lag told."""
        trial = self._study.ask()
        assert trial.number == number + self.known, "proposals are asked in number order"
        params = dict(suggest(trial, space=self._spec.space, fixed=self._spec.fixed))
        self._asked[number] = trial
        self._values[number] = {}
        if self._spec.pruner.name != "none":
            self._rungs[number] = self._make_rung(number)
        return params

    def observe(self, number: int, *, epoch: int, value: float) -> bool:
        """Take in one report of a running trial; whether it should be pruned here."""
        self._values[number][epoch] = value
        if number not in self._rungs:
            return False
        trial = self._rungs[number][1]
        trial.report(value, epoch)
        return bool(trial.should_prune()) and epoch + 1 < self._spec.epochs

    def tell(self, number: int, result: Result) -> None:
        """The end of trial `number`; called in number order."""
        assert number == self.told, "results are told in number order"
        trial = self._asked.pop(number)
        values = [result.metrics.get(objective.metric, math.nan) for objective in self._spec.objectives]
        if self._spec.constraints:
            trial.set_user_attr(
                _VIOLATIONS, [_finite(c.violation(dict(result.metrics))) for c in self._spec.constraints]
            )
        state = {COMPLETE: optuna.trial.TrialState.COMPLETE, PRUNED: optuna.trial.TrialState.PRUNED}.get(
            result.state, optuna.trial.TrialState.FAIL
        )
        if len(values) == 1:
            for epoch, value in self._values[number].items():
                trial.report(value, epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constraints are marked experimental
            self._study.tell(trial, values if state is optuna.trial.TrialState.COMPLETE else None, state=state)
        self._past.append(self._freeze(number, state=state, value=values[0]))
        self._values.pop(number)
        self.told += 1

    def _make_rung(self, number: int) -> tuple[optuna.Study, optuna.trial.Trial]:
        """A study of its own, in which trial `number` sees only the trials that its proposal saw."""
        study = optuna.create_study(
            study_name=f"sweep-{self._spec.seed}",  # Hyperband draws the bracket from name and number
            direction=self._spec.objectives[0].direction,
            pruner=_PRUNERS[self._spec.pruner.name](self._spec),
        )
        visible = self._past[: max(0, number - self._spec.used_lag + 1)]
        unseen = [optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)] * (number - len(visible))
        study.add_trials([*visible, *unseen])
        return study, study.ask()

    def _freeze(self, number: int, *, state: optuna.trial.TrialState, value: float) -> optuna.trial.FrozenTrial:
        system_attrs: dict[str, Any] = {}
        if number in self._rungs:
            study, trial = self._rungs.pop(number)
            system_attrs = dict(study.get_trials(deepcopy=False)[trial.number].system_attrs)
        complete = state is optuna.trial.TrialState.COMPLETE
        return optuna.trial.create_trial(
            state=state,
            value=value if complete else None,
            intermediate_values=dict(self._values[number]),
            system_attrs=system_attrs,
        )


def suggest(
    trial: optuna.trial.BaseTrial, *, space: Mapping[str, Dimension], fixed: Mapping[str, Value]
) -> Iterator[tuple[str, Value]]:
    """Fixed values, then each dimension whose condition holds, in the order of the file."""
    chosen: dict[str, Value] = dict(fixed)
    yield from fixed.items()
    for name, dimension in space.items():
        if any(chosen.get(other) != wanted for other, wanted in (dimension.when or {}).items()):
            continue
        value: Value
        if isinstance(dimension, Choice):
            picked = trial.suggest_categorical(name, list(dimension.choices))
            assert picked is not None
            value = picked
        elif isinstance(dimension, IntRange):
            value = trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
        else:
            value = trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
        chosen[name] = value
        yield name, value


def fit_earlier(spec: SweepSpec, earlier: Sequence[TrialRow]) -> list[optuna.trial.FrozenTrial]:
    """Complete trials of earlier sweeps that are points of this space, with its fixed values and finite metrics."""
    fitting = []
    for row in earlier:
        values = [row.metrics.get(objective.metric, math.nan) for objective in spec.objectives]
        point = optuna.trial.FixedTrial(dict(row.params))
        is_like = all(row.params.get(name, value) == value for name, value in spec.fixed.items())
        if row.state != COMPLETE or not is_like or not all(map(math.isfinite, values)):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # outside of a range is only a warning to Optuna
                chosen = dict(suggest(point, space=spec.space, fixed=spec.fixed))
        except (ValueError, UserWarning):  # it lacks a parameter, or one lies outside of its range
            continue
        violations = [_finite(constraint.violation(row.metrics)) for constraint in spec.constraints]
        fitting.append(
            optuna.trial.create_trial(
                values=values,
                params={name: chosen[name] for name in point.distributions},
                distributions=point.distributions,
                user_attrs={_VIOLATIONS: violations} if violations else None,
            )
        )
    return fitting


def middle_point(spec: SweepSpec) -> dict[str, Value]:
    """The middle of every dimension that applies, and the first of every choice."""
    middle = {name: _middle(dimension) for name, dimension in spec.space.items()}
    return dict(suggest(optuna.trial.FixedTrial(middle), space=spec.space, fixed=spec.fixed))


def only_point(spec: SweepSpec) -> dict[str, Value] | None:
    """The parameters of a sweep that searches nothing: one trial, whose point `first` gives whole; else None."""
    if spec.trials != 1 or not spec.first:
        return None
    try:
        return dict(suggest(optuna.trial.FixedTrial(dict(spec.first[0])), space=spec.space, fixed=spec.fixed))
    except ValueError:  # `first` leaves something open
        return None


def _middle(dimension: Dimension) -> Value:
    if isinstance(dimension, Choice):
        return dimension.choices[0]
    middle = math.sqrt(dimension.low * dimension.high) if dimension.log else (dimension.low + dimension.high) / 2
    if isinstance(dimension, IntRange):
        return min(dimension.high, dimension.low + round((middle - dimension.low) / dimension.step) * dimension.step)
    return (
        middle
        if dimension.step is None
        else dimension.low + dimension.step * round((middle - dimension.low) / dimension.step)
    )


def count_trials(spec: SweepSpec) -> int:
    """How many trials the sweep has: `trials`, or the size of the grid when that is smaller."""
    if spec.sampler != "grid":
        return spec.trials
    return min(spec.trials, sum(1 for _ in itertools.islice(_grid(spec), spec.trials)) + len(spec.first))


def _grid(spec: SweepSpec) -> Iterator[dict[str, Value]]:
    axes = [[(name, value) for value in _axis(dimension)] for name, dimension in spec.space.items()]
    return (dict(point) for point in itertools.product(*axes))


def _axis(dimension: Dimension) -> list[Value]:
    if isinstance(dimension, Choice):
        return list(dimension.choices)
    if isinstance(dimension, IntRange):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    assert dimension.step is not None, "the spec of a grid gives each range a step"
    count = math.floor((dimension.high - dimension.low) / dimension.step + 1e-9)
    return [dimension.low + dimension.step * index for index in range(count + 1)]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 1e9


def _read_violations(trial: optuna.trial.FrozenTrial) -> list[float]:
    violations: list[float] = trial.user_attrs.get(_VIOLATIONS, [])
    return violations


def _make_sampler(spec: SweepSpec) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some samplers and options are marked experimental
        return _SAMPLERS[spec.sampler](spec)


def _constraints(spec: SweepSpec) -> dict[str, Any]:
    return {"constraints_func": _read_violations} if spec.constraints else {}


def _count_random(spec: SweepSpec) -> int:
    """Trials before the sampler has enough to learn from; Optuna's own ten would be all of a small sweep."""
    return min(10, max(2, spec.trials // 3))


_SAMPLERS: dict[str, Callable[[SweepSpec], optuna.samplers.BaseSampler]] = {
    "random": lambda spec: optuna.samplers.RandomSampler(seed=spec.seed),
    "grid": lambda spec: optuna.samplers.RandomSampler(seed=spec.seed),  # its points are enqueued
    "tpe": lambda spec: optuna.samplers.TPESampler(
        seed=spec.seed, constant_liar=True, n_startup_trials=_count_random(spec), **_constraints(spec)
    ),
    "cmaes": lambda spec: optuna.samplers.CmaEsSampler(seed=spec.seed, warn_independent_sampling=False),
    "gp": lambda spec: optuna.samplers.GPSampler(
        seed=spec.seed,
        deterministic_objective=True,
        n_startup_trials=_count_random(spec),
        warn_independent_sampling=False,
        **_constraints(spec),
    ),
    "nsga2": lambda spec: optuna.samplers.NSGAIISampler(
        seed=spec.seed, population_size=min(50, max(4, spec.trials // 4)), **_constraints(spec)
    ),
    "qmc": lambda spec: optuna.samplers.QMCSampler(
        seed=spec.seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
    ),
}
_PRUNERS: dict[str, Callable[[SweepSpec], optuna.pruners.BasePruner]] = {
    "median": lambda spec: optuna.pruners.MedianPruner(
        n_startup_trials=spec.pruner.warmup_trials, n_warmup_steps=spec.pruner.warmup_epochs
    ),
    "percentile": lambda spec: optuna.pruners.PercentilePruner(
        spec.pruner.percentile,
        n_startup_trials=spec.pruner.warmup_trials,
        n_warmup_steps=spec.pruner.warmup_epochs,
    ),
    "successive_halving": lambda spec: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, spec.pruner.warmup_epochs), reduction_factor=spec.pruner.reduction_factor
    ),
    "hyperband": lambda spec: optuna.pruners.HyperbandPruner(
        min_resource=max(1, spec.pruner.warmup_epochs),
        max_resource=spec.epochs,
        reduction_factor=spec.pruner.reduction_factor,
    ),
}
