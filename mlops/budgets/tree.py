"""A tree of budgets and the rate card, as frozen values; canonical JSON for the ledger.

Leaves to others: reading files (`spec`), balances (`accounts`), who gets what (`quota`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from mlops.clock import SECOND_US

Period = Literal["day", "week", "month", "quarter", "once"]
ThresholdAction = Literal["warn", "stop-borrowing", "no-new-trials", "checkpoint-and-stop"]
PRIORITIES: Mapping[str, int] = {"low": 100, "normal": 500, "high": 700, "urgent": 900}
FULL = 10_000
"""A whole cap in basis points."""


@dataclass(frozen=True)
class Threshold:
    """What happens when a part of the cap is committed."""

    basis_points: int
    """8000 is 80 % of the cap."""
    action: ThresholdAction


@dataclass(frozen=True)
class Spender:
    """A person who may spend."""

    person: str
    public_key: str = ""
    """`ed25519:<base64 of 32 bytes>`; empty where no signature is asked for."""


@dataclass(frozen=True)
class Quota:
    """Accelerators of one kind at once, in thousandths."""

    nominal: int
    borrow: int | None = 0
    """May be used above nominal while siblings leave it idle; None: as much as there is."""
    lend: int | None = None
    """May be used by siblings while idle; None: all of nominal."""
    weight: int = 1000
    """Share between tenants that compete for what is left, in thousandths."""


@dataclass(frozen=True)
class BudgetNode:
    """One budget: a cap per period, who may spend, and quotas."""

    name: str
    parent: str = ""
    cap_micro_usd: int | None = None
    """None: only the ancestors' caps hold."""
    period: Period = "month"
    thresholds: tuple[Threshold, ...] = ()
    spenders: tuple[Spender, ...] = ()
    """Empty: anyone."""
    needs_signature: bool = False
    priority: int = PRIORITIES["normal"]
    serving: Literal["keep", "stop"] = "keep"
    """What an exhausted cap does to running replicas."""
    quotas: Mapping[str, Quota] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the ledger."""
        content = asdict(self)
        content["quotas"] = {kind: asdict(quota) for kind, quota in sorted(self.quotas.items())}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BudgetNode:
        """The value that `to_json` wrote."""
        known = dict(content)
        known["thresholds"] = tuple(Threshold(**entry) for entry in content["thresholds"])
        known["spenders"] = tuple(Spender(**entry) for entry in content["spenders"])
        known["quotas"] = {kind: Quota(**entry) for kind, entry in content["quotas"].items()}
        return cls(**known)

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON."""
        return digest_json(self.to_json())


@dataclass(frozen=True)
class RateVersion:
    """Prices from a day on."""

    from_us: int
    prices: Mapping[str, int]
    """Accelerator kind to micro-USD per accelerator-hour."""


@dataclass(frozen=True)
class RateCard:
    """All versions of the prices, oldest first."""

    versions: tuple[RateVersion, ...]

    def find_price(self, kind: str, *, at_us: int) -> int | None:
        """Micro-USD per accelerator-hour at a time; None: the kind has no price then."""
        for version in reversed(self.versions):
            if version.from_us <= at_us:
                return version.prices.get(kind)
        return None

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind that ever had a price."""
        return frozenset(kind for version in self.versions for kind in version.prices)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the ledger."""
        return {"versions": [{"from_us": v.from_us, "prices": dict(sorted(v.prices.items()))} for v in self.versions]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RateCard:
        """The value that `to_json` wrote."""
        return cls(tuple(RateVersion(entry["from_us"], entry["prices"]) for entry in content["versions"]))

    @property
    def digest(self) -> str:
        """`sha256:…` of the canonical JSON."""
        return digest_json(self.to_json())


@dataclass(frozen=True)
class BudgetTree:
    """Every budget and the rate card."""

    nodes: tuple[BudgetNode, ...]
    """Sorted by name."""
    rates: RateCard

    @classmethod
    def of(cls, nodes: Iterable[BudgetNode], *, rates: RateCard) -> BudgetTree:
        """A tree of checked nodes."""
        return cls(nodes=tuple(sorted(nodes, key=lambda node: node.name)), rates=rates)

    @cached_property
    def by_name(self) -> Mapping[str, BudgetNode]:
        """Name to node."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def children(self) -> Mapping[str, tuple[BudgetNode, ...]]:
        """Parent's name to its children; `""` to the roots."""
        found: dict[str, list[BudgetNode]] = {}
        for node in self.nodes:
            found.setdefault(node.parent, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def path(self, name: str) -> tuple[BudgetNode, ...]:
        """The node and its ancestors, itself first; empty when unknown."""
        found: list[BudgetNode] = []
        node = self.by_name.get(name)
        while node is not None and node not in found:
            found.append(node)
            node = self.by_name.get(node.parent)
        return tuple(found)


def find_period_start(period: Period, *, at_us: int) -> int:
    """When the period around `at_us` began: UTC, weeks from Monday; `once` began at 0."""
    if period == "once":
        return 0
    moment = datetime.fromtimestamp(at_us // SECOND_US, tz=UTC)
    day = moment.replace(hour=0, minute=0, second=0)
    if period == "week":
        return int(day.timestamp()) * SECOND_US - moment.weekday() * 86_400 * SECOND_US
    if period == "month":
        day = day.replace(day=1)
    if period == "quarter":
        day = day.replace(day=1, month=(moment.month - 1) // 3 * 3 + 1)
    return int(day.timestamp()) * SECOND_US


def find_period_end(period: Period, *, at_us: int) -> int | None:
    """When the next period begins; None for `once`."""
    days = {"day": 1, "week": 7, "month": 32, "quarter": 93}.get(period)
    if days is None:
        return None
    start = find_period_start(period, at_us=at_us)
    return find_period_start(period, at_us=start + days * 86_400 * SECOND_US)


def digest_json(content: Any) -> str:
    """`sha256:…` of canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
