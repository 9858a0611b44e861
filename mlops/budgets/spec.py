"""Budget files: one YAML per budget node (its name is the file's) and `rates.yaml`; all problems of all files at once.

Leaves to others: what the values mean (`tree`), bringing them into the ledger (`configuration`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mlops.budgets.money import to_milli
from mlops.budgets.tree import (
    FULL,
    PRIORITIES,
    BudgetNode,
    BudgetTree,
    Period,
    Quota,
    RateCard,
    RateVersion,
    Spender,
    Threshold,
    ThresholdAction,
)
from mlops.clock import SECOND_US
from mlops.errors import ProjectError
from mlops.specs import Spec, SpecT, load_spec
from mlops.units import Money

RATES_FILE = "rates.yaml"
MOST_ACCELERATORS = 1_000_000
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PERCENT = re.compile(r"(\d+(?:\.\d{1,2})?)\s*%")


def parse_percent(text: object) -> int:
    """`80%` to basis points.

    Raises:
        ValueError: Not a percentage between 0 and 100.
    """
    match = _PERCENT.fullmatch(text) if isinstance(text, str) else None
    points = round(float(match[1]) * 100) if match else 0
    if not 0 < points <= FULL:
        raise ValueError(f"{text!r} is not a part of the cap; write for instance 80%")
    return points


def parse_priority(value: object) -> int:
    """A class (`low`, `normal`, `high`, `urgent`) or a number from 0 to 1000.

    Raises:
        ValueError: Neither.
    """
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1000:
        return value
    raise ValueError(f"{value!r} is not a priority; write {', '.join(PRIORITIES)} or a number from 0 to 1000")


def _parse_limit(value: object) -> object:
    return None if value in ("unlimited", "all") else value


def _check_divisible(count: float | None) -> float | None:
    if count is not None and to_milli(count) != count * 1000:
        raise ValueError("is finer than a thousandth of an accelerator")
    return count


Count = Annotated[float, Field(ge=0, le=MOST_ACCELERATORS, allow_inf_nan=False), AfterValidator(_check_divisible)]
Limit = Annotated[Count | None, BeforeValidator(_parse_limit)]
Priority = Annotated[int, BeforeValidator(parse_priority)]


class QuotaSpec(Spec):
    """Accelerators of one kind at once; a TPU slice counts as one."""

    nominal: Count
    borrow: Limit = 0
    lend: Limit = None
    weight: Annotated[float, Field(gt=0, le=1000)] = 1


class SpenderSpec(Spec):
    """A person who may spend, with the key that signs their claims."""

    person: str
    key: str = ""

    @field_validator("key")
    @classmethod
    def _check_key(cls, key: str) -> str:
        if key and not _is_public_key(key):
            raise ValueError("is not `ed25519:` and the base64 of 32 bytes")
        return key


def _parse_spender(value: object) -> object:
    return {"person": value} if isinstance(value, str) else value


class BudgetSpec(Spec):
    """One budget node."""

    version: Literal[1]
    parent: str = ""
    cap: Money | None = None
    period: Period = "month"
    thresholds: dict[str, ThresholdAction] = Field(default_factory=dict)
    spenders: tuple[Annotated[SpenderSpec, BeforeValidator(_parse_spender)], ...] = ()
    signed: bool = False
    priority: Priority = PRIORITIES["normal"]
    serving: Literal["keep", "stop"] = "keep"
    quotas: dict[str, QuotaSpec] = Field(default_factory=dict)

    @field_validator("thresholds")
    @classmethod
    def _check_thresholds(cls, thresholds: dict[str, ThresholdAction]) -> dict[str, ThresholdAction]:
        points = [parse_percent(text) for text in thresholds]
        if len(set(points)) != len(points):
            raise ValueError("the same part of the cap stands twice")
        return thresholds

    @model_validator(mode="after")
    def _check_together(self) -> BudgetSpec:
        if self.thresholds and self.cap is None:
            raise ValueError("thresholds are parts of a cap, and there is no cap")
        keyless = [spender.person for spender in self.spenders if not spender.key]
        if self.signed and (keyless or not self.spenders):
            raise ValueError(f"signed: true asks for a key of every spender; missing: {', '.join(keyless) or 'all'}")
        return self

    def to_node(self, name: str) -> BudgetNode:
        """The value the machine works with."""
        return BudgetNode(
            name=name,
            parent=self.parent,
            cap_micro_usd=self.cap,
            period=self.period,
            thresholds=tuple(
                sorted(
                    (Threshold(parse_percent(text), action) for text, action in self.thresholds.items()),
                    key=lambda threshold: threshold.basis_points,
                )
            ),
            spenders=tuple(Spender(spender.person, spender.key) for spender in self.spenders),
            needs_signature=self.signed,
            priority=self.priority,
            serving=self.serving,
            quotas={kind: _to_quota(quota) for kind, quota in self.quotas.items()},
        )


class RateSpec(Spec):
    """Prices from a day (UTC) on, per accelerator-hour."""

    from_: date = Field(alias="from")
    prices: dict[str, Money]


class RatesSpec(Spec):
    """The rate card; versions are added, never changed."""

    version: Literal[1]
    rates: tuple[RateSpec, ...] = Field(min_length=1)

    @field_validator("rates")
    @classmethod
    def _check_order(cls, rates: tuple[RateSpec, ...]) -> tuple[RateSpec, ...]:
        days = [rate.from_ for rate in rates]
        if days != sorted(set(days)):
            raise ValueError("the days of `from` must grow from entry to entry")
        return rates

    def to_card(self) -> RateCard:
        """The value the machine works with."""
        return RateCard(
            tuple(
                RateVersion(
                    int(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp()) * SECOND_US, dict(rate.prices)
                )
                for rate in self.rates
                for d in [rate.from_]
            )
        )


def load_budgets(folder: Path) -> BudgetTree:
    """Read `rates.yaml` and every other `*.yaml` of a folder.

    Raises:
        ProjectError: `items` lists each problem of each file as `file:line: field: problem`.
    """
    problems: list[str] = []
    nodes: dict[str, BudgetNode] = {}
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.name != RATES_FILE}
    if not paths:
        problems.append(f"{folder}:1: (folder): holds no budget; write for instance {folder / 'company.yaml'}")
    rates = _load(folder / RATES_FILE, RatesSpec, problems)
    for name, path in paths.items():
        if not _NAME.fullmatch(name):
            problems.append(f"{path}:1: (name): a budget's name is lower-case letters, digits and hyphens")
        spec = _load(path, BudgetSpec, problems)
        if spec is not None:
            nodes[name] = spec.to_node(name)
    kinds = rates.to_card().kinds if rates is not None else None
    for name, node in nodes.items():
        problems.extend(_check_node(node, nodes, known=set(paths), kinds=kinds, path=paths[name]))
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ProjectError(f"the budgets have {count}", items=tuple(problems), hint="fix them and run `mlops doctor`")
    assert rates is not None
    return BudgetTree.of(nodes.values(), rates=rates.to_card())


def find_oversubscriptions(tree: BudgetTree) -> tuple[str, ...]:
    """Sentences about children that together may ask for more than their parent has: allowed, since not all do."""
    notes: list[str] = []
    for parent in tree.nodes:
        children = tree.children.get(parent.name, ())
        caps = [child.cap_micro_usd for child in children if child.cap_micro_usd is not None]
        same_period = all(child.period == parent.period for child in children if child.cap_micro_usd is not None)
        if parent.cap_micro_usd is not None and same_period and sum(caps) > parent.cap_micro_usd:
            notes.append(
                f"the caps below {parent.name} add up to {sum(caps) / 1e6:.2f} USD, its own is "
                f"{parent.cap_micro_usd / 1e6:.2f} USD: whoever spends first gets it, {parent.name} is never exceeded"
            )
        for kind, quota in sorted(parent.quotas.items()):
            total = sum(child.quotas[kind].nominal for child in children if kind in child.quotas)
            if total > quota.nominal:
                notes.append(
                    f"the {kind} quotas below {parent.name} add up to {total / 1000:g}, its own is "
                    f"{quota.nominal / 1000:g}: not all can use theirs at once"
                )
    return tuple(notes)


def _load(path: Path, kind: type[SpecT], problems: list[str]) -> SpecT | None:
    try:
        return load_spec(path, kind)
    except ProjectError as error:
        problems.extend(error.items or (error.message,))
        return None


def _check_node(
    node: BudgetNode, nodes: dict[str, BudgetNode], *, known: set[str], kinds: frozenset[str] | None, path: Path
) -> Iterator[str]:
    if node.parent and node.parent not in known:
        near = ", ".join(sorted(known - {node.name})) or "none"
        yield f"{path}:{_line_of(path, 'parent')}: parent: unknown budget {node.parent!r}; known: {near}"
    ring = _find_ring(node, nodes)
    if ring:
        yield f"{path}:{_line_of(path, 'parent')}: parent: is below itself: {' > '.join(ring)}"
    for kind in sorted(node.quotas):
        if kinds is not None and kind not in kinds:
            line, priced = _line_of(path, "quotas", kind), ", ".join(sorted(kinds))
            yield f"{path}:{line}: quotas.{kind}: unknown accelerator kind; {RATES_FILE} prices {priced}"


def _find_ring(node: BudgetNode, nodes: dict[str, BudgetNode]) -> tuple[str, ...]:
    seen = [node.name]
    parent = nodes.get(node.parent)
    while parent is not None and parent.name not in seen:
        seen.append(parent.name)
        parent = nodes.get(parent.parent)
    return (*seen, node.name) if parent is not None and parent.name == node.name else ()


def _line_of(path: Path, *fields: str) -> int:
    node: Any = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = 1
    for field in fields:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value == field:
                node, line = value, key.start_mark.line + 1
                break
    return line


def _to_quota(spec: QuotaSpec) -> Quota:
    return Quota(
        nominal=to_milli(spec.nominal),
        borrow=None if spec.borrow is None else to_milli(spec.borrow),
        lend=None if spec.lend is None else to_milli(spec.lend),
        weight=to_milli(spec.weight),
    )


def _is_public_key(key: str) -> bool:
    prefix, _, encoded = key.partition(":")
    try:
        return prefix == "ed25519" and len(base64.b64decode(encoded, validate=True)) == 32
    except binascii.Error:
        return False
