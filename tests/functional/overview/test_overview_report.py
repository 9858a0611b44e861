"""The report's facts from a project that promoted, failed and went back."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mlops.deploy.promoting import promote
from mlops.deploy.reconciler import stop_serving
from mlops.deploy.status import load_environment_status
from mlops.errors import Refusal
from mlops.overview.open_matters import OpenIncident, OpenMatters
from mlops.overview.report import load_report
from mlops.overview.report_page import render_report_page
from mlops.overview.status import load_status
from mlops.project.opening import open_project

ENVIRONMENTS = {
    "production": "version: 1\nname: production\napprovals: {needed: 2}\ntraffic: {ports: {income: 8711}}\n",
    "staging": "version: 1\nname: staging\napprovals: {needed: 0}\ntraffic: {ports: {income: 8701}}\n",
}


@pytest.fixture
def project(world):
    for name, text in ENVIRONMENTS.items():
        world.write(f"deploy/environments/{name}.yaml", text)
    world.commit("Rules")
    opened = open_project(world.root)
    yield opened
    opened.ledger.close()


def serve(world, number: int, **stub: Any):
    world.release(number, **stub)
    promoted = promote(world.site, world.rules, f"income@{number}")
    assert not isinstance(promoted, Refusal), promoted
    return world.reconciler().run_once()


def test_before_the_first_release_there_is_a_page(project):
    report = load_report(project, "income", OpenMatters())
    assert (report.version, report.main, report.serving) == (None, None, ())
    assert "nothing answers requests" in render_report_page(report)


def test_what_serves_what_was_before_and_what_failed(world, project):
    serve(world, 1)
    serve(world, 2)
    serve(world, 3, wrong_by=0.5)
    matters = OpenMatters((OpenIncident("i", "income", 1, "t", 0), OpenIncident("d", "digits", 1, "t", 0)))
    report = load_report(project, "income", matters)
    assert (report.main, report.version.number, report.previous.number) == ("production", 2, 1)
    assert [(line.environment, line.number) for line in report.failed] == [("production", 3)]
    assert [line.incident_id for line in report.incidents] == ["i"]
    assert [move.cause for move in report.moves] == ["automatic-return", "promote", "promote", "promote"]
    assert report.entry.number == 2
    assert "gate-passed" in dict(report.entry.checklist)
    assert "version 2 of income" in render_report_page(report)


def test_where_nothing_answers_every_screen_says_why(world, project):
    def look():
        (line,) = load_status(project, OpenMatters()).serving
        (product,) = load_environment_status(world.site, world.rules).products
        outages = load_report(project, "income", OpenMatters()).outages
        return line.outage, product.outage, product.is_converged, outages

    def expect(outage: str):
        until, expected = time.monotonic() + 60, (outage, outage, not outage, ("production",) * bool(outage))
        while (seen := look()) != expected and time.monotonic() < until:
            time.sleep(0.05)  # the proxy asks an instance twice a second
        assert seen == expected

    serve(world, 1)
    expect("")
    (instance,) = world.runtime.list_instances()
    world.runtime.stop(instance, timeout_seconds=1)
    expect("no instance answers")
    list(stop_serving(world.reconciler()))
    expect("stopped")
