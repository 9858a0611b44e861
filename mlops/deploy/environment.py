"""The rules of an environment, as people write them in `deploy/environments/<name>.yaml`.

Leaves to others: who people are (roles.py), what serves there now (desired_state.py, written by the machine).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from mlops.errors import ProjectError
from mlops.places import Places
from mlops.specs import Spec, load_spec
from mlops.units import Accelerators, Duration

_BYTES = re.compile(r"\s*(\d+)\s*(MiB|GiB)\s*")
_MEBIBYTES = {"MiB": 1, "GiB": 1024}
SLOTS = 8
"""Instances of one product that one environment can hold at once, on one machine."""


def parse_bytes(text: object) -> int:
    """`512MiB`, `2GiB` to bytes.

    Raises:
        ValueError: Not a size.
    """
    match = _BYTES.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for instance 512MiB or 2GiB")
    return int(match[1]) * _MEBIBYTES[match[2]] * 1024 * 1024


Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema({"type": "string", "pattern": _BYTES.pattern, "examples": ["512MiB"]}),
]
"""Bytes, written as `512MiB`."""


class ApprovalRules(Spec):
    """How many people must say yes, which ones, and for how long that holds."""

    needed: int = Field(ge=0, le=20)
    """Distinct people other than the authors."""
    role: str = Field(default="approver", pattern=r"^[a-z][a-z0-9-]*$")
    """A person counts only with this role in `deploy/roles.yaml`."""
    valid_for: Duration = 7 * 86_400.0
    """Seconds from signing until an approval is worth nothing."""


class TrafficRules(Spec):
    """Where requests come in, and how they move from one version to the next."""

    ports: dict[str, Annotated[int, Field(ge=1024, le=65535)]] = Field(min_length=1)
    """Product to its port on 127.0.0.1."""
    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (100,)
    """Shares in percent that the new version gets one after the other; the last is 100."""
    step_wait: Duration = 1.0
    """Seconds between two steps; health is checked before each."""
    drain: Duration = 10.0
    """Longest wait for requests under way before an old instance is stopped."""

    @model_validator(mode="after")
    def _check(self) -> TrafficRules:
        if not self.steps or self.steps[-1] != 100 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps: must rise and end with 100, for instance [10, 50, 100]")
        if len(set(self.ports.values())) != len(self.ports):
            raise ValueError("ports: two products cannot share one port")
        return self


class HealthRules(Spec):
    """When an instance is fit to answer."""

    start_within: Duration = 30.0
    """Seconds from start to ready."""
    interval: Duration = 1.0
    """Seconds between two checks of a serving instance."""
    failures: int = Field(default=3, ge=1, le=100)
    """Failed checks in a row until it is replaced."""
    golden_requests: bool = True
    """A new instance must answer the golden requests as the judged model did."""


class RollbackRules(Spec):
    """When the machine goes back by itself."""

    automatic: bool = True
    after_replacements: int = Field(default=2, ge=1, le=100)
    """Replacements of one version's instances within `window` that count as repeated failure."""
    window: Duration = 600.0
    keep_warm: bool = True
    """The last known good version keeps running without traffic, so that going back takes milliseconds."""


class ResourceRules(Spec):
    """Limits of one instance, where the runtime can set them."""

    memory: Bytes = 512 * 1024 * 1024
    pids: int = Field(default=64, ge=8)
    cpus: float = Field(default=1.0, gt=0)


class ServingBudget(Spec):
    """Who pays for what serves here."""

    name: str
    """A budget of `budgets/`."""
    accelerators: Accelerators = Accelerators("cpu", 1.0)
    """Of each product, all its replicas together."""
    window: Duration = 3_600.0
    """Paid ahead, and renewed at half time while a reconciler runs."""


class EnvironmentSpec(Spec):
    """Rules of one environment."""

    version: Literal[1]
    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    description: str = ""
    gate: Literal["pass"] = "pass"
    """The version passed the gate; there is no other setting on purpose."""
    chain: Literal["verified"] = "verified"
    """Every signature and digest from data to image holds; there is no other setting on purpose."""
    after: str | None = None
    """An environment in which the version must have served well before."""
    approvals: ApprovalRules
    traffic: TrafficRules
    health: HealthRules = HealthRules()
    rollback: RollbackRules = RollbackRules()
    resources: ResourceRules = ResourceRules()
    budget: ServingBudget | None = None
    """Left out: what serves here is not metered."""
    runtimes: tuple[Literal["podman", "bubblewrap"], ...] = Field(default=("podman", "bubblewrap"), min_length=1)
    """In order of preference; the first that this machine has is used."""
    erasure: Literal["automatic", "manual"] = "manual"
    """`automatic`: signed standing approvals admit a retrain after an erasure, once it passed the gate."""
    at_deadline: Literal["fall-back", "stop"] = "fall-back"
    """When an erasure is due and no clean model may enter: the last good clean version serves, if any; or none does."""

    @model_validator(mode="after")
    def _check(self) -> EnvironmentSpec:
        if self.after == self.name:
            raise ValueError("after: an environment cannot come after itself")
        return self


def environment_file(places: Places, name: str) -> Path:
    """Where an environment's rules stand."""
    return places.root / "deploy" / "environments" / f"{name}.yaml"


def list_environments(places: Places) -> tuple[str, ...]:
    """Names of all environments."""
    return tuple(sorted(path.stem for path in (places.root / "deploy" / "environments").glob("*.yaml")))


def load_environment(places: Places, name: str) -> EnvironmentSpec:
    """Rules of one environment.

    Raises:
        ProjectError: There is no such environment, or its file has problems (all named).
    """
    known = list_environments(places)
    if name not in known:
        raise ProjectError(
            f"unknown environment {name!r}", hint=f"known: {', '.join(known) or 'none'} (deploy/environments/*.yaml)"
        )
    path = environment_file(places, name)
    spec = load_spec(path, EnvironmentSpec)
    if spec.name != name:
        raise ProjectError(f"{path} has 1 problem", items=(f"{path}: name: must be {name!r}, as the file is called",))
    if spec.after is not None and spec.after not in known:
        raise ProjectError(f"{path} has 1 problem", items=(f"{path}: after: there is no environment {spec.after!r}",))
    return spec
