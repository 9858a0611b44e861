"""The status screen as text. Leaves to others: what stands on it (status.py)."""

from __future__ import annotations

from collections.abc import Iterator

from mlops.clock import SECOND_US, render_time
from mlops.overview.open_matters import ErasureDeadlines, OpenIncident
from mlops.overview.status import BudgetLine, ProductLine, ServingLine, Status, SweepLine, days_between
from mlops.units import render_money

_BAR = 20
"""Width of a budget's bar, in letters."""
_SHOWN_DEADLINES = 5
"""Deadlines of a dataset that are shown one by one."""
_SILENT_SECONDS = 120
"""A sweep whose driver was not seen for so long is said to be without one."""


def render_status(status: Status) -> str:
    """The whole screen, one section per question."""
    blocks = [
        ("products", [line for product in status.products for line in _render_product(product, status.now_us)]),
        ("environments", list(_render_environments(status))),
        ("budgets", [_render_budget(line) for line in status.budgets]),
        ("running sweeps", [_render_sweep(line, status.now_us) for line in status.sweeps]),
        ("waiting", [f"{line.what}: {line.for_whom}   → {line.next_step}" for line in status.waiting]),
        ("open incidents", [_render_incident(line, status.now_us) for line in status.incidents]),
        ("open erasure requests", [_render_erasure(line) for line in status.erasures]),
        ("upkeep", list(_render_upkeep(status))),
    ]
    lines: list[str] = []
    for title, content in blocks:
        lines.append(title)
        lines.extend(f"  {line}" for line in content or ["none"])
    return "\n".join(lines)


def render_age(then_us: int, now_us: int) -> str:
    """`5 min ago`."""
    seconds = max(0, (now_us - then_us) // SECOND_US)
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {word} ago"
    return f"{seconds} s ago"


def _render_product(line: ProductLine, now_us: int) -> Iterator[str]:
    if line.latest_number is None or line.latest_us is None:
        yield f"{line.name}: never released   → mlops release {line.name}"
    else:
        yield f"{line.name}@{line.latest_number}  registered {render_age(line.latest_us, now_us)}"
    if line.gate is not None:
        undecided = f", undecided: {', '.join(line.gate.undecided)}" if line.gate.undecided else ""
        failed = f", not kept but only advisory: {', '.join(line.gate.failed)}" if line.gate.failed else ""
        yield f"  last gate {line.gate.verdict} {render_age(line.gate.at_us, now_us)}{failed}{undecided}"


def _render_environments(status: Status) -> Iterator[str]:
    for name in status.environments:
        lines = [line for line in status.serving if line.environment == name]
        told = "; ".join(_render_serving(line, status.now_us) for line in lines)
        yield f"{name}: {told or 'nothing serves'}"


def _render_serving(line: ServingLine, now_us: int) -> str:
    share = "" if line.share == 100 else f" {line.share} %"
    since = f"since {render_age(line.since_us, now_us).removesuffix(' ago')}"
    outage = f", {line.outage}   → mlops deploy reconcile {line.environment}" if line.outage else ""
    return f"{line.product}@{line.number}{share} {since}{outage}"


def _render_budget(line: BudgetLine) -> str:
    spent = f"{render_money(line.charged_micro_usd)} charged, {render_money(line.reserved_micro_usd)} reserved"
    if not line.cap_micro_usd:
        return f"{line.name}: {spent}, no cap of its own"
    part = (line.charged_micro_usd + line.reserved_micro_usd) / line.cap_micro_usd
    bar = "#" * min(_BAR, round(part * _BAR))
    period = "in all" if line.period == "once" else f"a {line.period}"
    return f"{line.name}: [{bar:.<{_BAR}}] {part:.0%} of {render_money(line.cap_micro_usd)} {period}: {spent}"


def _render_sweep(line: SweepLine, now_us: int) -> str:
    counts = ", ".join(f"{many} {state.lower()}" for state, many in sorted(line.trials.items())) or "no trial yet"
    is_silent = now_us - line.seen_us > _SILENT_SECONDS * SECOND_US
    driver = f"; no driver since {render_time(line.seen_us)}, `mlops sweep resume {line.sweep_id}`" if is_silent else ""
    return f"{line.sweep_id} {line.product}: {counts}, started {render_age(line.started_us, now_us)}{driver}"


def _render_incident(line: OpenIncident, now_us: int) -> str:
    opened = render_age(line.opened_us, now_us)
    return f"{line.incident_id} severity {line.severity}, opened {opened}: {line.title}"


def _render_erasure(line: ErasureDeadlines) -> str:
    """Counts and days only: who asked stands nowhere here."""
    states = ", ".join(f"{count} {state}" for state, count in line.states.items())
    late = f", {line.overdue} OVERDUE" if line.overdue else ""
    shown = ", ".join(f"{days:g}" for days in line.days_left[:_SHOWN_DEADLINES])
    more = f" and {len(line.days_left) - _SHOWN_DEADLINES} later" if len(line.days_left) > _SHOWN_DEADLINES else ""
    return f"{line.dataset}: {states}{late}; days left: {shown}{more}   → mlops erasure run {line.dataset}"


def _render_upkeep(status: Status) -> Iterator[str]:
    for product in status.products:
        days = days_between(product.last_good_rebuild_us, status.now_us)
        told = "never" if days is None else f"{days:g} days ago"
        yield f"last good rebuild of {product.name}: {told}   → mlops rebuild {product.name}@latest --check"
    age = days_between(status.dependencies_us, status.now_us)
    yield f"dependencies pinned {age:g} days ago" if age is not None else "dependencies are not pinned: make lock"
