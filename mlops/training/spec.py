"""The sweep spec `training/<product>.yaml`: search space, sampler, pruner, trials, machines, objective, budget.

Leaves to others: the budget tree (mlops/budgets), what the samplers do (mlops/training/optuna_search).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from mlops.budgets.spec import Priority
from mlops.errors import ProjectError
from mlops.specs import Spec, load_spec
from mlops.training.trainer import RESERVED, SERVED_IMPORTS, TrainerText, compare_parameters, read_trainer
from mlops.units import Accelerators, Duration, Money

ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
MEMBER = "member"
"""The parameter that numbers the trials of an ensemble."""
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def read_exponent(value: object) -> object:
    """`1e-3` as a number: YAML 1.1 takes one without a dot, or without the sign of its exponent, for a word."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


Value = Annotated[bool | int | float | str, BeforeValidator(read_exponent)]
SamplerName = Literal["random", "grid", "tpe", "cmaes", "gp", "nsga2", "qmc"]
PrunerName = Literal["none", "median", "percentile", "successive_halving", "hyperband"]


class _Dimension(Spec):
    when: dict[ParameterName, Value] | None = None
    """Only searched where earlier parameters have these values."""


class FloatRange(_Dimension):
    """A real number; `log` searches its logarithm."""

    low: float
    high: float
    kind: Literal["float"] = "float"
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_width(self) -> Self:
        _require_range(self.low, self.high, log=self.log)
        _require_step(self.low, self.high, step=self.step, log=self.log)
        return self

    def explain_outside(self, value: Value) -> str:
        """Why a value can never be drawn; "" when it can."""
        return _explain_outside(self.low, self.high, value)


class IntRange(_Dimension):
    """A whole number."""

    kind: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _has_width(self) -> Self:
        _require_range(self.low, self.high, log=self.log)
        _require_step(self.low, self.high, step=None if self.step == 1 else self.step, log=self.log)
        return self

    def explain_outside(self, value: Value) -> str:
        """As `FloatRange.explain_outside`."""
        if isinstance(value, float) and not value.is_integer():
            return f"{value!r} is no whole number"
        return _explain_outside(self.low, self.high, value)


class Choice(_Dimension):
    """One of some values."""

    choices: tuple[Value, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        twice = sorted({repr(value) for value in self.choices if self.choices.count(value) > 1})
        if twice:
            raise ValueError(f"`choices` has {', '.join(twice)} more than once")
        return self

    def explain_outside(self, value: Value) -> str:
        """As `FloatRange.explain_outside`."""
        return "" if value in self.choices else f"{value!r} is none of {', '.join(map(repr, self.choices))}"


def _kind_of(value: object) -> str:
    if isinstance(value, Spec):
        return {IntRange: "int", Choice: "choice"}.get(type(value), "float")
    content = value if isinstance(value, dict) else {}
    return "choice" if "choices" in content else str(content.get("kind", "float"))


Dimension = Annotated[
    Annotated[IntRange, Tag("int")] | Annotated[Choice, Tag("choice")] | Annotated[FloatRange, Tag("float")],
    Discriminator(_kind_of),
]
"""`{low, high}`, `{kind: int, low, high}` or `{choices: […]}`."""


class Objective(Spec):
    """What is searched for."""

    metric: MetricName
    direction: Literal["minimize", "maximize"] = "minimize"


class Constraint(Spec):
    """A winner's metric must be at most, or at least, this."""

    metric: MetricName
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _has_bound(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of `at_most` and `at_least`")
        return self

    def violation(self, metrics: dict[str, float]) -> float:
        """How far on the wrong side; at most 0 is satisfied. A metric that was not reported is infinitely far."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        return value - self.at_most if self.at_most is not None else float(self.at_least or 0.0) - value


class Pruner(Spec):
    """Which trials are stopped before their last epoch."""

    name: PrunerName = "none"
    warmup_epochs: int = Field(default=1, ge=0)
    warmup_trials: int = Field(default=4, ge=1)
    percentile: float = Field(default=50.0, gt=0, lt=100)
    reduction_factor: int = Field(default=3, ge=2)


class StopEarly(Spec):
    """When the whole sweep ends before its last trial; trials that run are finished."""

    target: float | None = None
    """The objective of a trial that satisfies the constraints is at least this good."""
    plateau_trials: int | None = Field(default=None, ge=1)
    """So many trials in a row brought nothing better."""
    deadline: Duration | None = Field(default=None, gt=0)
    spend: Money | None = None


class Isolation(Spec):
    """The winner is trained as members that share no person, each slice by slice; forgetting a person touches one."""

    groups: int = Field(ge=2, le=1_000)
    """Members, S; each has its own isolation groups of the dataset."""
    slices: int = Field(default=1, ge=1, le=100)
    """Slices of a member, R; it leaves a checkpoint after each but the last."""

    def stage_epochs(self, epochs: int) -> int:
        """Epochs of each stage, so that a member reads about as many rows as in `epochs` over all its data.

        Stage r reads r of R slices, so e epochs a stage cost e (R + 1) / 2 epochs over all (Bourtoule et al. 2021,
        "Machine Unlearning", section 4.2).
        """
        return max(1, round(2 * epochs / (self.slices + 1)))


class EphemeralCluster(Spec):
    """A Ray cluster that is started for one sweep and ended with it."""

    image: str = Field(pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")
    """Training image, by digest; what is installed there must be what `requirements.lock` names."""
    namespace: str = "default"
    """On Kubernetes."""
    node_accelerators: int = Field(default=8, ge=1)
    """The most that one machine has."""
    head_cpus: int = Field(default=2, ge=1)
    idle: Duration = 300.0
    """A machine without work is given back after this."""
    start_deadline: Duration = 900.0
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Of worker pods on Kubernetes, for instance the kind of a TPU slice."""
    provider: dict[str, Any] = Field(default_factory=dict)
    """Section of that name for `ray up`."""
    ssh_user: str = "ubuntu"
    head_config: dict[str, Any] = Field(default_factory=dict)
    """`node_config` of the head for `ray up`."""
    node_config: dict[str, Any] = Field(default_factory=dict)
    """`node_config` of the workers for `ray up`."""


class SweepSpec(Spec):
    """Everything a sweep needs to know; see docs/sweeps.md."""

    version: Literal[1]
    product: str
    dataset: str
    purpose: str = "model_training"
    """What the data is used for; a dataset that does not allow it is refused."""
    budget: str
    objective: Annotated[
        Annotated[Objective, Tag("one")] | Annotated[tuple[Objective, ...], Tag("several"), Field(min_length=1)],
        Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
    ]
    """Several objectives need the sampler nsga2; the winner is chosen by the first."""
    constraints: tuple[Constraint, ...] = ()
    space: dict[ParameterName, Dimension] = Field(min_length=1)
    fixed: dict[ParameterName, Value] = Field(default_factory=dict)
    first: tuple[dict[ParameterName, Value], ...] = ()
    """Points of the space that are tried first, for instance the winner of an earlier sweep."""
    warm_start: tuple[str, ...] = ()
    """Ids of ended sweeps whose complete trials the sampler learns from, where they are points of this space."""
    trials: int = Field(ge=1, le=1_000_000)
    epochs: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    sampler: SamplerName = "tpe"
    pruner: Pruner = Pruner()
    workers: int = Field(default=2, ge=1)
    """Data-parallel workers of one trial."""
    min_workers: int | None = Field(default=None, ge=1)
    """An elastic group: with so few it starts when there is no place for all; the global batch stays the same."""
    accelerators: Accelerators = Accelerators("cpu", 0.5)
    """Of each worker."""
    groups: int = Field(default=2, ge=1)
    """Worker groups, which is trials at the same time."""
    lag: int | None = Field(default=None, ge=1)
    """Proposal n sees the results of trials up to n - lag, whichever ended first; default twice the groups minus 1,
    and at least 2: one is asked for while one runs."""
    priority: Priority | None = None
    """`low`, `normal`, `high`, `urgent` or 0..1000, among the sweeps of the budget; left out: the budget's."""
    lease_window: Duration = Field(default=60.0, gt=0)
    grace: Duration = 5.0
    checkpoint_time: Duration = 5.0
    idle: Duration = 30.0
    """A group without work gives its lease back after this."""
    start_deadline: Duration = Field(default=120.0, gt=0)
    silence: Duration = Field(default=600.0, gt=0)
    """A worker group that reports nothing for so long is taken as hung, ended and started again."""
    max_failures: int = Field(default=2, ge=0)
    """So often a trial is repeated after its group died; an error of the trainer is not repeated."""
    max_preemptions: int = Field(default=20, ge=0)
    """So often a trial is repeated after its machines were taken away."""
    yield_deadline: Duration = 60.0
    """A trial that is asked to yield has so long to commit a checkpoint; then its workers are ended."""
    recycle_trials: int = Field(default=500, ge=1)
    """A worker group is replaced after so many trials."""
    recycle_mib: int = Field(default=1024, ge=1)
    """A worker group is replaced when a worker's own memory has grown by so many MiB since its start."""
    checkpoint_epochs: int = Field(default=1, ge=1)
    audit_pool: int = Field(default=0, ge=0)
    """Training rows that each trial includes with probability 1/2, for the gate's privacy audit."""
    isolation: Isolation | None = None
    """The candidate is an ensemble of isolated members; else it is the winner itself."""
    weights: Literal["float32", "int8"] = "float32"
    """How the exported model keeps its matrices; `int8` rounds the winner's before the gate judges it."""
    export: Literal["onnx", "torch"] = "onnx"
    """`torch` for a model that torch cannot export: its module serves, in an image with `runtime: torch`."""
    stop: StopEarly = StopEarly()
    cluster: Literal["local", "existing", "ephemeral"] | None = None
    """Where Ray runs; left out: `existing` when RAY_ADDRESS is set, else `local`."""
    ephemeral: EphemeralCluster | None = None
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """For Ray, on an existing cluster: what its workers run in."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All objectives; the first decides."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    @property
    def used_lag(self) -> int:
        """`lag`, or its default."""
        return self.lag if self.lag is not None else max(2, 2 * self.groups - 1)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        reserved = RESERVED | ({MEMBER} if self.isolation is not None else frozenset())
        problems = [f"`{name}` is given by the machine" for name in sorted(reserved & {*self.space, *self.fixed})]
        problems += [f"`{name}` stands in space and in fixed" for name in sorted({*self.space} & {*self.fixed})]
        problems += _misplaced_points(self)
        if len(self.objectives) > 1 and self.sampler not in ("nsga2", "random"):
            problems.append(f"several objectives need the sampler nsga2, not {self.sampler}")
        if len(self.objectives) > 1 and self.pruner.name != "none":
            problems.append("a pruner needs one objective")
        if self.isolation is not None and self.audit_pool:
            problems.append(
                "isolation and audit_pool exclude each other: the pool is drawn over the rows of all members"
            )
        if self.export == "torch" and (self.weights != "float32" or self.isolation is not None):
            problems.append("`export: torch` excludes `weights: int8` and `isolation`, which are made of ONNX")
        if self.min_workers is not None and self.min_workers > self.workers:
            problems.append(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.cluster == "ephemeral" and self.ephemeral is None:
            problems.append("cluster ephemeral needs `ephemeral: {image: NAME@sha256:…}`")
        if self.runtime_env and self.cluster != "existing":
            problems.append("runtime_env needs `cluster: existing`; elsewhere the environment is given")
        if self.lag is not None and self.lag < self.groups:
            problems.append(f"lag {self.lag} is below groups {self.groups}: a group would always wait")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def to_json(self) -> dict[str, Any]:
        """Canonical content of the search, defaults filled in; without what only the export reads."""
        return self.model_dump(mode="json", exclude={"weights", "export"})


def load_sweep_spec(path: Path) -> SweepSpec:
    """Read a sweep spec.

    Raises:
        ProjectError: It has problems; `items` names all of them.
    """
    spec = load_spec(path, SweepSpec)
    if spec.product != path.stem:
        raise ProjectError(f"{path}: product is {spec.product!r}, the file is named for {path.stem!r}")
    return spec


def verify_parameters(spec: SweepSpec, *, trainer_file: Path) -> TrainerText:
    """The trainer, when what it reads is exactly what the sweep gives.

    Raises:
        ProjectError: A name that the trainer does not read, or one that it needs and does not get; or, with
            `export: torch`, it imports what its image does not have.
    """
    trainer = read_trainer(trainer_file)
    problems = compare_parameters(trainer, offered=(*spec.space, *spec.fixed))
    if problems:
        raise ProjectError(
            f"the sweep of {spec.product} and its trainer name different parameters",
            items=problems,
            hint=f"change training/{spec.product}.yaml or {trainer_file.name}",
        )
    foreign = ", ".join(sorted(trainer.imports - SERVED_IMPORTS)) if spec.export == "torch" else ""
    if foreign:
        raise ProjectError(
            f"{trainer_file} is served itself (`export: torch`) and imports {foreign}, which its image does not have",
            hint="model() and what it uses keep to torch, numpy and the standard library; train() may import more",
        )
    return trainer


def _misplaced_points(spec: SweepSpec) -> Iterator[str]:
    """What `first`, `when` and a grid say of values that the space does not have."""
    for index, point in enumerate(spec.first):
        yield from (
            f"first.{index} names {name!r}, which is not in space" for name in sorted(set(point) - set(spec.space))
        )
        for name in spec.space.keys() & point.keys():
            outside = spec.space[name].explain_outside(point[name])
            yield from [f"first.{index}.{name}: {outside}"] if outside else []
    earlier: set[str] = set()
    for name, dimension in spec.space.items():
        conditions = dimension.when or {}
        for other in sorted(set(conditions) - earlier - set(spec.fixed)):
            yield f"space.{name}.when names {other!r}, which does not come before it"
        for other in sorted(set(conditions) & earlier):
            outside = spec.space[other].explain_outside(conditions[other])
            yield from [f"space.{name}.when.{other}: {outside}, so {name} is never searched"] if outside else []
        if spec.sampler == "grid" and conditions:
            yield f"space.{name}: a grid has no conditions; use another sampler, or drop `when`"
        if spec.sampler == "grid" and isinstance(dimension, FloatRange) and dimension.step is None:
            yield f"space.{name}: a grid needs `step` or `choices`"
        earlier.add(name)


def _explain_outside(low: float, high: float, value: Value) -> str:
    if isinstance(value, bool | str):
        return f"{value!r} is no number"
    return "" if low <= value <= high else f"{value!r} is outside of {low} to {high}"


def _require_step(low: float, high: float, *, step: float | None, log: bool) -> None:
    if step is not None and log:
        raise ValueError("`log` and `step` exclude each other")
    if step is not None and step > high - low:
        raise ValueError(f"`step` {step} is larger than the range {low} to {high}")


def _require_range(low: float, high: float, *, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("`low` and `high` must be finite")
    if low >= high:
        raise ValueError(f"the range {low} to {high} is empty")
    if log and low <= 0:
        raise ValueError("`log` needs `low` above 0")
