"""The status as Prometheus text: every line parses, and the numbers are the status's."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mlops.clock import DAY_US, SECOND_US
from mlops.overview.metrics import render_metrics
from mlops.overview.open_matters import OpenErasure, OpenIncident, OpenMatters
from mlops.overview.status import BudgetLine, GateLine, ProductLine, ServingLine, Status, SweepLine

NOW = 1_800_000_000 * SECOND_US
MATTERS = OpenMatters(
    (OpenIncident("income-1", "income", 1, 'said "no"', NOW), OpenIncident("income-2", "income", 3, "t", NOW)),
    (OpenErasure("income", "fenced", NOW - DAY_US), OpenErasure("income", "batched", NOW + 3 * DAY_US)),
)
STATUS = Status(
    now_us=NOW,
    products=(ProductLine("income", 3, NOW, None, GateLine("FAIL", NOW, "", ("a", "b")), None),),
    environments=("production",),
    serving=(ServingLine("production", "income", 2, 90, NOW, is_committed=True),),
    budgets=(BudgetLine("r", "once", None, 1_500_000, 0), BudgetLine("company", "month", 9_000_000, 0, 250_000)),
    sweeps=(SweepLine("sweep-1", "income", NOW, NOW, {"RUNNING": 2, "COMPLETE": 5}),),
    waiting=(),
    dependencies_us=None,
    incidents=MATTERS.incidents,
    erasures=MATTERS.count_erasures(NOW),
)
LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (-?[0-9.e+-]+)')


def read(text: str) -> dict[str, float]:
    """Line without its value to the value; every line must be of the format."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            assert LINE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name not in found, f"{name} stands twice"
            found[name] = float(value)
    return found


LINES = {
    'mlops_budget_charged_usd{budget="r",period="once"}': 1.5,
    'mlops_budget_reserved_usd{budget="company",period="month"}': 0.25,
    'mlops_budget_cap_usd{budget="company",period="month"}': 9,
    'mlops_sweep_trials{product="income",state="complete",sweep="sweep-1"}': 5,
    'mlops_product_latest_version{product="income"}': 3,
    'mlops_gate_verdict{product="income",verdict="FAIL"}': 1,
    'mlops_gate_verdict{product="income",verdict="PASS"}': 0,
    'mlops_gate_undecided_checks{product="income"}': 2,
    'mlops_serving_share_ratio{environment="production",product="income",version="2"}': 0.9,
    'mlops_incidents_open{product="income",severity="1"}': 1,
    'mlops_incidents_open{product="income",severity="2"}': 0,
    'mlops_erasure_requests_open{dataset="income",state="fenced"}': 1,
    'mlops_erasure_days_left{dataset="income"}': -1,
    'mlops_erasure_requests_overdue{dataset="income"}': 1,
}


@pytest.mark.parametrize("line", LINES)
def test_a_number_of_the_status_stands_there(line: str) -> None:
    assert read(render_metrics(STATUS))[line] == LINES[line]


def test_what_is_stopped_has_no_share() -> None:
    stopped = replace(STATUS, serving=(replace(STATUS.serving[0], outage="stopped"),))
    line = 'mlops_serving_share_ratio{environment="production",product="income",version="2"}'
    assert read(render_metrics(stopped))[line] == 0


def test_what_is_not_there_has_no_line() -> None:
    text = render_metrics(STATUS)
    assert 'mlops_budget_cap_usd{budget="r"' not in text
    assert "mlops_dependencies" not in text
    assert render_metrics(replace(STATUS, sweeps=())).count("mlops_sweep") == 0


def test_every_metric_is_described_once_before_its_samples() -> None:
    lines = render_metrics(STATUS).splitlines()
    names = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for name in names:
        first = next(number for number, line in enumerate(lines) if re.match(rf"{name}[ {{]", line))
        assert lines[first - 1] == f"# TYPE {name} gauge"


def test_odd_names_do_not_break_the_format() -> None:
    odd = replace(STATUS, budgets=(BudgetLine('a"b\\c\nd', "month", 1, 1, 1),))
    assert 'mlops_budget_cap_usd{budget="a\\"b\\\\c\\nd",period="month"}' in read(render_metrics(odd))
