"""The status as metrics in the Prometheus text format 0.0.4, for a node exporter's text folder or a push; no listener.

Times are Unix seconds, money is US dollars. No person, key or subject stands in any label.
Leaves to others: gathering (status.py), the metrics of a serving image (mlops/serving/server/metrics.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlops.clock import SECOND_US
from mlops.overview.status import Status
from mlops.units import MICRO_USD

VERDICTS = ("PASS", "FAIL", "UNDECIDED")


@dataclass(frozen=True)
class Sample:
    """One line: labels and value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Family:
    """One metric."""

    name: str
    help: str
    samples: tuple[Sample, ...]


def render_metrics(status: Status) -> str:
    """All families that have a sample, in a fixed order."""
    lines: list[str] = []
    for family in list_families(status):
        if not family.samples:
            continue
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} gauge"]
        lines += [
            f"{family.name}{_render_labels(sample.labels)} {_render_value(sample.value)}" for sample in family.samples
        ]
    return "\n".join(lines) + "\n"


def list_families(status: Status) -> Iterator[Family]:
    """Budgets, sweeps, gate, environments, upkeep, and what stands open."""
    yield from _budgets(status)
    trials = [
        Sample({"sweep": sweep.sweep_id, "product": sweep.product, "state": state.lower()}, many)
        for sweep in status.sweeps
        for state, many in sorted(sweep.trials.items())
    ]
    yield Family("mlops_sweep_trials", "Trials of running sweeps.", tuple(trials))
    seen = [Sample({"sweep": it.sweep_id, "product": it.product}, it.seen_us / SECOND_US) for it in status.sweeps]
    yield Family(
        "mlops_sweep_driver_seen_timestamp_seconds", "When a running sweep's driver was last seen.", tuple(seen)
    )
    yield from _products(status)
    served = [
        Sample(
            {"environment": it.environment, "product": it.product, "version": str(it.number)},
            0 if it.outage else it.share / 100,
        )
        for it in status.serving
    ]
    yield Family(
        "mlops_serving_share_ratio", "Share of traffic that a version has; 0 while nothing answers.", tuple(served)
    )
    since = [
        Sample(
            {"environment": it.environment, "product": it.product, "version": str(it.number)}, it.since_us / SECOND_US
        )
        for it in status.serving
    ]
    yield Family("mlops_serving_since_timestamp_seconds", "Since when a version has its share.", tuple(since))
    yield from _open(status)
    if status.dependencies_us is not None:
        lock = (Sample({}, status.dependencies_us / SECOND_US),)
        yield Family("mlops_dependencies_pinned_timestamp_seconds", "When the lock last changed.", lock)


def _budgets(status: Status) -> Iterator[Family]:
    kinds = (
        ("charged", "Money charged in the current period."),
        ("reserved", "Money that live leases have reserved."),
        ("cap", "Cap of the current period; absent without one."),
    )
    for kind, text in kinds:
        values = [(it, getattr(it, f"{kind}_micro_usd")) for it in status.budgets]
        samples = [
            Sample({"budget": it.name, "period": it.period}, micro / MICRO_USD)
            for it, micro in values
            if micro is not None
        ]
        yield Family(f"mlops_budget_{kind}_usd", text, tuple(samples))


def _products(status: Status) -> Iterator[Family]:
    latest = [Sample({"product": it.name}, it.latest_number) for it in status.products if it.latest_number is not None]
    yield Family("mlops_product_latest_version", "Number of the newest registered version.", tuple(latest))
    verdicts = [
        Sample({"product": it.name, "verdict": verdict}, float(it.gate.verdict == verdict))
        for it in status.products
        if it.gate is not None
        for verdict in VERDICTS
    ]
    yield Family("mlops_gate_verdict", "Last verdict of the gate: 1 for the one that holds.", tuple(verdicts))
    undecided = [Sample({"product": it.name}, len(it.gate.undecided)) for it in status.products if it.gate is not None]
    yield Family("mlops_gate_undecided_checks", "Checks that the last gate could not decide.", tuple(undecided))
    judged = [Sample({"product": it.name}, it.gate.at_us / SECOND_US) for it in status.products if it.gate is not None]
    yield Family("mlops_gate_judged_timestamp_seconds", "When the gate last judged.", tuple(judged))
    rebuilt = [
        Sample({"product": it.name}, it.last_good_rebuild_us / SECOND_US)
        for it in status.products
        if it.last_good_rebuild_us is not None
    ]
    yield Family("mlops_rebuild_good_timestamp_seconds", "When a rebuild last gave equal digests.", tuple(rebuilt))


def _open(status: Status) -> Iterator[Family]:
    counts = [
        Sample(
            {"product": product, "severity": str(severity)},
            sum(it.product == product and it.severity == severity for it in status.incidents),
        )
        for product in [line.name for line in status.products]
        for severity in (1, 2, 3)
    ]
    yield Family("mlops_incidents_open", "Open incidents by severity, 1 is worst.", tuple(counts))
    states = [
        Sample({"dataset": it.dataset, "state": state}, many)
        for it in status.erasures
        for state, many in it.states.items()
    ]
    yield Family(
        "mlops_erasure_requests_open", "Requests to be forgotten that still have to be answered.", tuple(states)
    )
    left = [Sample({"dataset": it.dataset}, it.days_left[0]) for it in status.erasures if it.days_left]
    yield Family("mlops_erasure_days_left", "Days to the nearest deadline; below zero when it has passed.", tuple(left))
    late = [Sample({"dataset": it.dataset}, it.overdue) for it in status.erasures]
    yield Family("mlops_erasure_requests_overdue", "Requests whose deadline has passed.", tuple(late))


def _render_labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(labels.items())) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _render_value(value: float) -> str:
    return repr(int(value)) if float(value).is_integer() else repr(float(value))
