"""The status screen from plain values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlops.clock import DAY_US, SECOND_US
from mlops.overview.open_matters import OpenErasure, OpenIncident, OpenMatters
from mlops.overview.status import (
    BudgetLine,
    GateLine,
    ProductLine,
    ServingLine,
    Status,
    SweepLine,
    days_between,
)
from mlops.overview.status_text import render_age, render_status
from mlops.overview.waiting import WaitingLine

NOW = 1_800_000_000 * SECOND_US


MATTERS = OpenMatters(
    (OpenIncident("income-1", "income", 1, "offer far too high", NOW - 3_600 * SECOND_US),),
    tuple(
        OpenErasure("income", state, NOW + round(days * DAY_US))
        for days, state in [(20, "batched"), (-1.5, "batched"), (12.4, "legal-hold"), *[(29, "fenced")] * 5]
    ),
)


def full_status() -> Status:
    return Status(
        now_us=NOW,
        products=(
            ProductLine(
                "income",
                3,
                NOW - 2 * DAY_US,
                "sha256:" + "0" * 64,
                GateLine("PASS", NOW - 2 * DAY_US, "sha256:" + "1" * 64, ("gap by race",), ("couples",)),
                NOW - 9 * DAY_US,
            ),
            ProductLine("digits", None, None, None, None, None),
        ),
        environments=("production", "staging"),
        serving=(ServingLine("production", "income", 2, 100, NOW - 3_600 * SECOND_US, is_committed=True),),
        budgets=(
            BudgetLine("company", "month", 100_000_000, 25_000_000, 5_000_000),
            BudgetLine("r", "once", None, 0, 0),
        ),
        sweeps=(SweepLine("sweep-1", "income", NOW - 60 * SECOND_US, NOW - 500 * SECOND_US, {"RUNNING": 2}),),
        waiting=(WaitingLine("income@3 for production", "2 more approvers", "mlops approve …"),),
        dependencies_us=NOW - 40 * DAY_US,
        incidents=MATTERS.incidents,
        erasures=MATTERS.count_erasures(NOW),
    )


@pytest.mark.parametrize(
    "words",
    [
        "income@3  registered 2 d ago",
        "last gate PASS 2 d ago, not kept but only advisory: couples, undecided: gap by race",
        "digits: never released",
        "production: income@2 since 1 h",
        "staging: nothing serves",
        "30% of 100.00 USD a month",
        "no cap of its own",
        "2 running",
        "no driver since",
        "income@3 for production: 2 more approvers",
        "last good rebuild of income: 9 days ago",
        "last good rebuild of digits: never",
        "dependencies pinned 40 days ago",
        "income-1 severity 1, opened 1 h ago: offer far too high",
        "income: 2 batched, 5 fenced, 1 legal-hold, 1 OVERDUE; days left: -1.5, 12.4, 20, 29, 29 and 3 later",
    ],
)
def test_the_screen_says(words: str) -> None:
    assert words in render_status(full_status())


def test_what_was_stopped_says_so_and_how_to_start_it() -> None:
    line = replace(full_status().serving[0], outage="stopped")
    text = render_status(replace(full_status(), serving=(line,)))
    assert "production: income@2 since 1 h, stopped   → mlops deploy reconcile production" in text


def test_the_screen_fits_and_is_json_too() -> None:
    assert len(render_status(full_status()).split("\n")) <= 24
    content = json.loads(json.dumps(full_status().to_json()))
    assert content["days_since_good_rebuild"] == {"income": 9.0, "digits": None}
    assert content["dependencies_age_days"] == 40.0


def test_ages_are_told_in_the_largest_unit() -> None:
    assert [render_age(NOW - seconds * SECOND_US, NOW) for seconds in (0, 59, 60, 7200, 86400 * 3)] == [
        "0 s ago",
        "59 s ago",
        "1 min ago",
        "2 h ago",
        "3 d ago",
    ]
    assert render_age(NOW + SECOND_US, NOW) == "0 s ago"
    assert days_between(None, NOW) is None


def test_a_request_that_is_an_hour_late_is_overdue() -> None:
    late = OpenMatters((), (OpenErasure("income", "fenced", NOW - 3_600 * SECOND_US),)).count_erasures(NOW)
    text = render_status(replace(full_status(), erasures=late))
    assert "income: 1 fenced, 1 OVERDUE; days left: -0.1" in text
