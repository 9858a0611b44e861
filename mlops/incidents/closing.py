"""Closing an incident: only a promoted release that passed its case does, and the gate's own result is the evidence.

Leaves to others: judging the case (mlops/evaluation), promoting (mlops/deploy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from mlops.deploy.sql_deployments import FAILED, DeploymentRow, load_barred, load_deployments
from mlops.errors import EvaluationError, ProjectError, Reason, Refusal
from mlops.evaluation.store import load_kept
from mlops.incidents.affected import Version, list_versions
from mlops.incidents.sql_incidents import ANSWER, CLOSED, IncidentRow, close_row, list_incidents, load_incident
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.digest import hex_of


def close_incident(project: Project, incident_id: str, *, is_dry_run: bool = False) -> IncidentRow | Refusal:
    """Close an incident on evidence, or say everything that is missing. One that is closed stays as it is.

    Raises:
        ProjectError: There is no such incident.
    """
    with project.ledger.read() as connection:
        row = load_incident(connection, incident_id)
        if row is None:
            known = ", ".join(each.incident_id for each in list_incidents(connection, state="open"))
            raise ProjectError(f"there is no incident {incident_id!r}", hint=f"open incidents: {known or 'none'}")
        if row.state == CLOSED:
            return row
        judge = find_answer_evidence if row.kind == ANSWER else find_deployment_evidence
        found = judge(connection, project.places, row)
    if isinstance(found, Refusal) or is_dry_run:
        return found if isinstance(found, Refusal) else row
    with project.ledger.write() as transaction:
        return close_row(transaction, incident_id, who=project.person, evidence=found)


def find_answer_evidence(connection: sa.Connection, places: Places, row: IncidentRow) -> dict[str, Any] | Refusal:
    """Environment to the serving version's gate result on the case; a refusal unless every one that serves passed."""
    serving = load_deployments(connection, product=row.product, is_current=True)
    if not serving:
        text = f"no version of {row.product} serves anywhere; promote a release that passed the case"
        return Refusal((Reason("nothing-serves", text),))
    versions = {version.number: version for version in list_versions(connection, row.product)}
    evidence: dict[str, Any] = {}
    reasons: list[Reason] = []
    for deployment in serving:
        problem = _find_gap(places, row, deployment, versions.get(deployment.number))
        if problem is not None:
            reasons.append(problem)
            continue
        gate = versions[deployment.number].gate
        evidence[deployment.environment] = {"number": deployment.number, "gate": gate, "verdict": "PASS"}
    return Refusal(tuple(reasons)) if reasons else evidence


def find_deployment_evidence(connection: sa.Connection, _places: Places, row: IncidentRow) -> dict[str, Any] | Refusal:
    """The newer version that serves well where this one failed; going back alone mends nothing."""
    environment, failed = str(row.affected["environment"]), int(row.affected["number"])
    barred = load_barred(connection, environment)
    rows = load_deployments(connection, environment=environment, product=row.product, is_current=True)
    good = [each for each in rows if each.number > failed and each.outcome != FAILED and each.image not in barred]
    if not good:
        text = f"{environment} serves no version of {row.product} after {failed} yet; release and promote one"
        return Refusal((Reason("no-newer-version", text),))
    return {environment: {"number": good[0].number, "image": good[0].image, "since_us": good[0].since_us}}


def _find_gap(places: Places, row: IncidentRow, deployment: DeploymentRow, version: Version | None) -> Reason | None:
    where = f"version {deployment.number} in {deployment.environment}"
    if version is None:
        return Reason("version-unknown", f"{where} has no registration in this ledger")
    try:
        result = load_kept(places.evidence / hex_of(version.gate))
    except EvaluationError as error:
        return Reason("gate-result-missing", f"{where}: {error.message}")
    for check, claim in _claims_of(result, row.incident_id):
        judged = (check.get("details") or {}).get("cases") or {}
        if judged.get(row.incident_id) != row.case_digest:
            text = f"{where} was judged by another wording of {row.case_path} than the one the incident was opened with"
            return Reason("case-changed", text)
        if claim["verdict"] == "PASS":
            return None
        return Reason("case-not-passed", f"{where}: the gate said {claim['verdict']} on the case")
    text = f"the gate did not judge {where} by {row.case_path}: commit the case, release and promote"
    return Reason("case-not-judged", text)


def _claims_of(result: dict[str, Any], case_id: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for check in result["checks"]:
        if check["kind"] == "incidents":
            yield from ((check, claim) for claim in check["claims"] if claim["name"] == case_id)
