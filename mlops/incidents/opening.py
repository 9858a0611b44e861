"""Opening an incident that a person reports: a record, a case that later releases must pass, and what can be done now.

The order is record, then case file: killed in between, the same report again writes the file. The same thing reported
twice, also at the same time, is one incident.
Leaves to others: reading the report (request.py), making the case nobody's row (synthesis.py), and committing the case,
which a person does, since who wrote a case counts when a version is promoted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mlops.clock import DAY_US, SECOND_US, render_time
from mlops.datasets.version import load_dataset_version, read_shard, read_split
from mlops.deploy.site import Site
from mlops.errors import DatasetError, ProjectError, Reason, Refusal
from mlops.evaluation.incident_cases import draw_neighbours, find_violations
from mlops.evaluation.incident_spec import IncidentCase, Relation
from mlops.evaluation.judged import JudgedModel, load_judged
from mlops.evaluation.policy import load_policy
from mlops.evaluation.rows import rows_of_table
from mlops.evaluation.surface_rules import Change
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.files import write_atomically
from mlops.incidents.affected import Affected, find_affected, find_model
from mlops.incidents.planning import RetrainPlan, RollbackOffer, plan_retrain, plan_rollbacks
from mlops.incidents.request import Features, read_row
from mlops.incidents.sql_incidents import ANSWER, OPEN, IncidentRow, find_by_key, insert_incident
from mlops.incidents.synthesis import plan_neighbourhood, synthesise, to_plain
from mlops.project.opening import Project
from mlops.provenance.digest import canonical_json
from mlops.serving.server.contract import Contract as ServerContract
from mlops.serving.server.contract import load_contract
from mlops.specs import parse_spec
from mlops.training.candidate import Candidate

KEPT_DAYS = 730
"""A case is judged for so long unless its file says otherwise."""
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Report:
    """What a person says went wrong."""

    reference: str
    """What answered: ENVIRONMENT, PRODUCT@NUMBER, or the digest of an image or model (`x-model-digest`)."""
    relation: Relation
    severity: int
    title: str
    reason: str
    product: str | None = None
    """Needed when several products are behind `reference`."""
    body: bytes = b""
    """The request as it was sent."""
    row: str = ""
    """Instead of `body`: `SHARD#NUMBER`, a row of the dataset."""
    number: int | None = None
    """Which row of `body`."""
    prediction: str = ""
    """`x-prediction-id` of the answer, for the record."""
    vary: tuple[Change, ...] = ()
    is_synthetic: bool = False
    """The row in `body` is made up already."""


@dataclass(frozen=True)
class Opened:
    """An incident and what can be done about it."""

    incident: IncidentRow
    case: IncidentCase
    affected: Affected
    rollbacks: tuple[RollbackOffer, ...]
    retrain: RetrainPlan
    is_new: bool


def open_incident(
    project: Project,
    site: Site,
    report: Report,
    *,
    is_dry_run: bool = False,
    hook: Callable[[str], None] = lambda _: None,
) -> Opened | Refusal:
    """Open an incident, or find the one that is open for the same report.

    Args:
        project: Where.
        site: The same as the deploy room sees it.
        report: What went wrong.
        is_dry_run: Say what would be done; nothing is written.
        hook: Called with the name of each point at which a crash must be harmless.

    Returns:
        The incident, or why there is none: the model answers as expected, or no synthetic row shows the fault.

    Raises:
        ProjectError: The report does not fit the model.
        ProvenanceError: Nothing is known of the reference.
    """
    candidate = find_model(project, report.reference, product=report.product)
    contract = load_contract(candidate.folder / "contract.json")
    row = _read_report(project, report, candidate, contract)
    key = _key_of(site, report, candidate.product, row)
    favourable = _favourable(project, candidate)
    ask = _asker(report.relation, load_judged(candidate), favourable)
    known = _find_known(project, key)
    if known is None:
        made = _make_case(project, report, candidate, contract, row, ask=ask, key=key)
        if isinstance(made, Refusal):
            return made
        case = made
    else:
        case = parse_spec(known.case_text, IncidentCase, source=known.case_path)
    with project.ledger.read() as connection:
        affected = find_affected(
            connection, project.places, candidate.product, is_wrong=lambda one: _answers_wrongly(case, one, favourable)
        )
    incident = known or _row_of(project, report, case, affected, key=key)
    if not is_dry_run:
        with project.ledger.write() as transaction:
            incident = insert_incident(transaction, incident)
        hook("recorded")
        path = project.places.root / incident.case_path
        if incident.state == OPEN and not path.is_file():
            write_atomically(path, incident.case_text)
        case = parse_spec(incident.case_text, IncidentCase, source=incident.case_path)
    rollbacks = plan_rollbacks(site, candidate.product, affected)
    retrain = plan_retrain(project, candidate.product)
    return Opened(incident, case, affected, rollbacks, retrain, is_new=known is None)


def _read_report(project: Project, report: Report, candidate: Candidate, contract: ServerContract) -> Features:
    if not report.row:
        return read_row(report.body, contract, number=report.number)
    shard_path, _, text = report.row.rpartition("#")
    version = load_dataset_version(project.places, candidate.contract.dataset.name)
    shard = next((shard for shard in version.manifest.shards if shard.relpath == shard_path), None)
    if shard is None or not text.isdecimal() or int(text) >= shard.rows:
        raise ProjectError(
            f"--row {report.row!r} is no row of dataset {version.name}",
            hint=f"write SHARD#NUMBER, the shard as in `mlops dataset show {version.name}`, rows from 0",
        )
    rows = rows_of_table(read_shard(version, shard).slice(int(text), 1), schema=version.schema)
    return {column.name: np.asarray(rows.features[column.name]).reshape(1) for column in contract.inputs}


def _key_of(site: Site, report: Report, product: str, row: Features) -> str:
    """Names the report: only who holds the machine's key could find the row from it, or make the same draws."""
    values = {name: float(value[0]) for name, value in row.items()}
    told = canonical_json({"product": product, "relation": report.relation.model_dump(mode="json"), "row": values})
    return hashlib.sha256(site.machine_key().sign(b"incident\0" + told)).hexdigest()


def _favourable(project: Project, candidate: Candidate) -> int:
    wanted = load_policy(project.places.policy_file(candidate.product)).favourable_class
    return candidate.contract.classes.index(wanted) if wanted in candidate.contract.classes else 0


def _asker(relation: Relation, model: JudgedModel, favourable: int) -> Callable[[Features], NDArray[np.bool_]]:
    def ask(features: Features) -> NDArray[np.bool_]:
        try:
            return find_violations(relation, features, model=model, favourable=favourable)
        except NotEvaluableError as error:
            raise ProjectError(f"what should hold cannot be asked of the model: {error.text}") from error

    return ask


def _make_case(
    project: Project,
    report: Report,
    candidate: Candidate,
    contract: ServerContract,
    row: Features,
    *,
    ask: Callable[[Features], NDArray[np.bool_]],
    key: str,
) -> IncidentCase | Refusal:
    if not ask(row)[0]:
        text = f"the model behind {report.reference} answers as expected: {_tell(report.relation)} holds for this row"
        return Refusal((Reason("answers-as-expected", text),))
    is_known = _find_data(project, candidate)
    if report.is_synthetic:
        if is_known(row)[0]:
            text = "this row stands in the data, so it is not made up; leave out --synthetic"
            return Refusal((Reason("row-of-a-person", text),))
        chosen: Features | Refusal = row
    else:
        chosen = synthesise(row, contract, is_wrong=ask, is_known=is_known, seed=int(key[:16], 16))
    if isinstance(chosen, Refusal):
        return chosen
    now_us = project.clock.now_us()
    answered = report.row and f"row {report.row} of {candidate.contract.dataset.name}"
    asked = report.prediction and f"prediction {report.prediction}"
    origin = [answered or asked or "a request", f"answered by {report.reference}", f"reported {render_time(now_us)}"]
    case = IncidentCase(
        version=1,
        id=project.ids.new(candidate.product),
        product=candidate.product,
        title=report.title,
        severity=report.severity,  # type: ignore[arg-type]  # 1 to 3, checked by the model
        origin=", ".join(origin),
        expires=datetime.fromtimestamp((now_us + KEPT_DAYS * DAY_US) / SECOND_US, tz=UTC).date(),
        input=to_plain(chosen, contract),
        relation=report.relation,
        neighbourhood=report.vary or plan_neighbourhood(chosen, contract),
    )
    try:
        draw_neighbours(case, candidate.contract, seed=0)
    except NotEvaluableError as error:
        raise ProjectError(f"the case cannot be judged: {error.text}", hint="see --vary") from error
    return case


def _find_data(project: Project, candidate: Candidate) -> Callable[[Features], NDArray[np.bool_]]:
    """Whether rows stand in the data that the model's dataset has now.

    Raises:
        DatasetError: The data is not here; without looking into it nothing may be written down.
    """
    version = load_dataset_version(project.places, candidate.contract.dataset.name)
    names = [column.name for column in candidate.contract.inputs]
    held: set[tuple[float, ...]] = set()
    for split in _SPLITS:
        try:
            table = read_split(version, split)
        except DatasetError:
            if split == "train":
                raise
            continue
        if table.num_rows:
            features = rows_of_table(table, schema=version.schema).features
            held.update(map(tuple, np.column_stack([features[name].astype(np.float64) for name in names]).tolist()))

    def is_known(features: Features) -> NDArray[np.bool_]:
        rows = np.column_stack([features[name].astype(np.float64) for name in names]).tolist()
        return np.array([tuple(row) in held for row in rows])

    return is_known


def _answers_wrongly(case: IncidentCase, candidate: Candidate, favourable: int) -> bool:
    first = {name: values[:1] for name, values in draw_neighbours(case, candidate.contract, seed=0).items()}
    return bool(find_violations(case.relation, first, model=load_judged(candidate), favourable=favourable)[0])


def _find_known(project: Project, key: str) -> IncidentRow | None:
    with project.ledger.read() as connection:
        return find_by_key(connection, key)


def _row_of(project: Project, report: Report, case: IncidentCase, affected: Affected, *, key: str) -> IncidentRow:
    return IncidentRow(
        incident_id=case.id,
        key=key,
        kind=ANSWER,
        product=case.product,
        severity=report.severity,
        title=report.title,
        reason=report.reason,
        state=OPEN,
        opened_us=project.clock.now_us(),
        opened_by=project.person,
        case_text=render_case(case),
        case_digest=case.digest,
        affected=affected.to_json(),
    )


def render_case(case: IncidentCase) -> str:
    """The case file."""
    content: dict[str, Any] = case.model_dump(mode="json", exclude_defaults=True)
    head = "# Written by `mlops incident open`. The input is synthetic: it is nobody's row.\n"
    return head + yaml.safe_dump({"version": 1, **content}, sort_keys=False, allow_unicode=True, width=120)


def _tell(relation: Relation) -> str:
    if relation.kind == "bound":
        return f"bound {relation.minimum:g}..{relation.maximum:g}"
    return f"{relation.kind} {relation.answer or relation.column}"
