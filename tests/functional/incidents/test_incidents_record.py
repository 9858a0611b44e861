"""Incidents in the ledger: opened once, opened by the machine for a failed version, closed on evidence only."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlops.deploy.promoting import promote
from mlops.deploy.sql_deployments import load_deployments
from mlops.errors import ProjectError, Refusal
from mlops.incidents.affected import find_environments, list_versions
from mlops.incidents.automatic import open_for_returns
from mlops.incidents.closing import close_incident
from mlops.incidents.sql_incidents import CLOSED, OPEN, IncidentRow, insert_incident, list_incidents
from mlops.ledger.sql_events import load_events
from mlops.project.opening import open_project
from mlops.provenance.digest import digest_json, hex_of

CASE = "sha256:" + "c" * 64


@pytest.fixture
def project(world):
    world.write(
        "deploy/environments/production.yaml", "version: 1\nname: production\ntraffic: {ports: {income: 8711}}\n"
    )
    world.commit("Rules")
    opened = open_project(world.root)
    yield opened
    opened.ledger.close()


def serve(world, number: int, **stub: Any):
    """Release, promote and reconcile a version; returns how the reconcile ended."""
    world.release(number, **stub)
    promoted = promote(world.site, world.rules, f"income@{number}")
    assert not isinstance(promoted, Refusal), promoted
    return world.reconciler().run_once()


def judged(world, number: int, *, verdict: str, case: str = CASE, name: str = "income-1") -> None:
    """What the gate said of a version about a case, where the gate keeps it."""
    with world.site.ledger.read() as connection:
        version = next(each for each in list_versions(connection, "income") if each.number == number)
    check = {"kind": "incidents", "details": {"cases": {name: case}}, "claims": [{"name": name, "verdict": verdict}]}
    content = {"product": "income", "checks": [check]}
    folder = world.site.places.evidence / hex_of(version.gate)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate.json").write_text(json.dumps({**content, "digest": digest_json(content)}))


def row_of(key: str = "k", **changes: Any) -> IncidentRow:
    content: dict[str, Any] = {
        "incident_id": "income-1", "key": key, "kind": "answer", "product": "income", "severity": 1, "title": "t",
        "reason": "r", "state": OPEN, "opened_us": 1, "opened_by": "ada", "case_text": "version: 1\n",
        "case_digest": CASE, "affected": {},
    }  # fmt: skip
    return IncidentRow(**{**content, **changes})


def record(world, row: IncidentRow) -> IncidentRow:
    with world.site.ledger.write() as transaction:
        return insert_incident(transaction, row)


def test_the_same_report_is_one_incident_also_at_once(world):
    rows = [row_of(incident_id=f"income-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        kept = {row.incident_id for row in pool.map(lambda row: record(world, row), rows)}
    assert len(kept) == 1
    with world.site.ledger.read() as connection:
        assert len(list_incidents(connection)) == 1
        assert len(list(load_events(connection, kind_prefix="incident."))) == 1


def test_a_version_that_failed_with_nothing_to_go_back_to_is_not_said_to_be_returned_from(world):
    outcome = serve(world, 1, wrong_by=0.5)
    assert "`mlops promote` another one" in outcome.products[0].actions[-1]
    (found,) = open_for_returns(world.site, "production")
    assert found.title == "income@1 failed in production"


def test_a_version_that_failed_here_is_an_incident_once(world, project):
    serve(world, 1)
    outcome = serve(world, 2, wrong_by=0.5)
    assert outcome.reasons, "the planted version must fail"
    (found,) = open_for_returns(world.site, "production")
    assert (found.product, found.affected["number"], found.kind, found.opened_by) == (
        "income",
        2,
        "deployment",
        "mlops",
    )
    assert found.reason == outcome.products[0].failure
    assert open_for_returns(world.site, "production") == ()
    refused = close_incident(project, found.incident_id)
    assert isinstance(refused, Refusal)
    assert refused.reasons[0].code == "no-newer-version"
    serve(world, 3)
    closed = close_incident(project, found.incident_id)
    assert isinstance(closed, IncidentRow)
    assert (closed.state, closed.evidence["production"]["number"]) == (CLOSED, 3)


GAPS = {
    "nothing serves": (False, None, CASE, "nothing-serves"),
    "the gate never saw the case": (True, None, CASE, "gate-result-missing"),
    "the case failed": (True, "FAIL", CASE, "case-not-passed"),
    "the case was undecided": (True, "UNDECIDED", CASE, "case-not-passed"),
    "another wording was judged": (True, "PASS", "sha256:" + "d" * 64, "case-changed"),
}


@pytest.mark.parametrize("gap", GAPS)
def test_an_incident_stays_open_while_something_is_missing(world, project, gap):
    is_served, verdict, case, code = GAPS[gap]
    record(world, row_of())
    if is_served:
        serve(world, 1)
    if verdict:
        judged(world, 1, verdict=verdict, case=case)
    refused = close_incident(project, "income-1")
    assert isinstance(refused, Refusal)
    assert [reason.code for reason in refused.reasons] == [code]


def test_an_older_case_of_another_name_closes_nothing(world, project):
    record(world, row_of())
    serve(world, 1)
    judged(world, 1, verdict="PASS", name="income-0")
    refused = close_incident(project, "income-1")
    assert isinstance(refused, Refusal)
    assert refused.reasons[0].code == "case-not-judged"


def test_a_promoted_release_that_passed_closes_it_with_the_gates_result_as_evidence(world, project):
    record(world, row_of())
    serve(world, 1)
    judged(world, 1, verdict="PASS")
    assert close_incident(project, "income-1", is_dry_run=True).state == OPEN
    closed = close_incident(project, "income-1")
    assert closed.state == CLOSED
    assert closed.evidence["production"]["verdict"] == "PASS"
    assert close_incident(project, "income-1") == closed
    with world.site.ledger.read() as connection:
        assert len(list(load_events(connection, kind_prefix="incident.closed"))) == 1


def test_closing_what_is_not_there_names_what_is_open(world, project):
    record(world, row_of())
    with pytest.raises(ProjectError) as caught:
        close_incident(project, "income-9")
    assert "income-1" in caught.value.hint


def test_environments_are_found_as_serving_and_as_way_back(world, project):
    serve(world, 1)
    serve(world, 2)
    with world.site.ledger.read() as connection:
        images = {row.number: row.image for row in load_deployments(connection, environment="production")}
        found = find_environments(connection, project.places, images=frozenset(images.values()))
        assert {(entry.number, entry.role) for entry in found} == {(2, "serves"), (1, "way back")}
        assert find_environments(connection, project.places, images=frozenset()) == ()
