"""Why did a model answer this row so? Finds the model, explains the answer, shows training rows to whom may see them.

The row is held in memory only. Training rows are people's data: they are shown only to a person whose key has the role
`data-reader` in `deploy/roles.yaml`, each showing is an event of the ledger, and withdrawn people are left out.
Leaves to others: the explanation itself (mlops/evaluation/explaining, influence), reading the request (request.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlops.datasets.tombstones import load_tombstones
from mlops.datasets.version import DatasetVersion, load_dataset_version, read_split
from mlops.deploy.roles import load_roles
from mlops.errors import ProjectError, Reason, Refusal
from mlops.evaluation.audit_evidence import load_audit_matrix
from mlops.evaluation.explaining import BACKGROUND_ROWS, EXPLAINING_SEED, Explanation, explain_row, spell
from mlops.evaluation.influence import Influence, measure_influence
from mlops.evaluation.judged import load_judged
from mlops.evaluation.policy import load_policy
from mlops.evaluation.rows import SUBJECT, rows_of_table
from mlops.evaluation.twins import find_twins
from mlops.evaluation.verdicts import NotEvaluableError
from mlops.incidents.request import Features
from mlops.project.opening import Project
from mlops.provenance.keys import load_key
from mlops.training.candidate import Candidate

ROLE = "data-reader"
LOOKED_AT = 50
"""Rows with the clearest influence that are looked up; withdrawn people among them are left out."""


@dataclass(frozen=True)
class TrainingRow:
    """A training row that drove the answer."""

    shard: str
    number: int
    """In the shard, from 0."""
    values: dict[str, str]
    """Features and label as people write them."""
    log_odds: float
    error: float
    p_value: float


@dataclass(frozen=True)
class Told:
    """What a person gets to see."""

    model: str
    """Digest of the candidate."""
    explanation: Explanation
    training_rows: tuple[TrainingRow, ...] | None
    """None: not asked for, or nothing can be said; `training_text` says which."""
    training_text: str

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def explain_answer(
    project: Project, candidate: Candidate, row: Features, *, reader: str | None, count: int = 5
) -> Told | Refusal:
    """Explain the candidate's answer to one row.

    Args:
        project: The project.
        candidate: The model that answered.
        row: Features of shape `[1]`.
        reader: Person who asks to see training rows; None does without.
        count: How many training rows at most.

    Returns:
        The explanation, or the refusal: this person may not see training rows.

    Raises:
        ProjectError: The row cannot be explained by this model.
    """
    grounds = () if reader is None else check_reader(project, reader)
    if grounds:
        return Refusal(grounds)
    policy = load_policy(project.places.policy_file(candidate.product))
    version = load_dataset_version(project.places, candidate.contract.dataset.name)
    train = rows_of_table(read_split(version, "train"), schema=version.schema)
    try:
        explanation = explain_row(
            load_judged(candidate),
            row,
            background=train.sample(BACKGROUND_ROWS, seed=EXPLAINING_SEED),
            changes=policy.changes,
            constraints=policy.constraints,
            favourable=policy.favourable_class,
        )
    except NotEvaluableError as error:
        raise ProjectError(f"this answer cannot be explained: {error.text}") from error
    if reader is None:
        return Told(candidate.digest, explanation, None, f"not asked for (--training-rows needs the role {ROLE})")
    found = _find_rows(project, candidate, row, version, class_name=policy.favourable_class, count=count)
    if isinstance(found, str):
        return Told(candidate.digest, explanation, None, found)
    with project.ledger.write() as transaction:
        shown = [f"{one.shard}#{one.number}" for one in found]
        transaction.append("training_rows.shown", candidate.digest, {"reader": reader, "rows": shown})
    return Told(candidate.digest, explanation, found, "")


def check_reader(project: Project, person: str) -> tuple[Reason, ...]:
    """Why this person may not see training rows; empty when they may. The private key must lie here.

    Raises:
        ProvenanceError: There is no such key.
    """
    key = load_key(project.places.keys_folder, person)
    roles = load_roles(project.places)
    owner = roles.person_of_key(key.public)
    if owner is None:
        return (Reason("unknown-key", f"the key of {person} belongs to nobody in deploy/roles.yaml"),)
    name, entry = owner
    if not entry.is_valid_at(project.clock.now_us()):
        return (Reason("key-ended", f"the key of {name} no longer counts"),)
    if ROLE not in roles.people[name].roles:
        return (Reason("role-missing", f"{name} has not the role {ROLE} in deploy/roles.yaml"),)
    return ()


def _find_rows(
    project: Project, candidate: Candidate, row: Features, version: DatasetVersion, *, class_name: str, count: int
) -> tuple[TrainingRow, ...] | str:
    """The rows, or why none can be named."""
    if version.digest != candidate.contract.dataset.digest:
        return "the dataset has another version than the one that the model was trained on: its rows cannot be named"
    matrix = load_audit_matrix(project.places, candidate)
    if matrix is None:
        return "the sweep left no audit pool; set audit_pool in training/<product>.yaml to get one"
    try:
        found = measure_influence(
            row,
            twins=find_twins(project.ledger, candidate, with_winner=True),
            matrix=matrix,
            class_=candidate.contract.classes.index(class_name),
            count=LOOKED_AT,
        )
    except NotEvaluableError as error:
        return error.text
    return tuple(_look_up(found, version, withdrawn=load_tombstones(project.places, version.name))[:count])


def _look_up(
    found: tuple[Influence, ...], version: DatasetVersion, *, withdrawn: frozenset[bytes]
) -> list[TrainingRow]:
    table = read_split(version, "train")
    shards = version.manifest.shards_of("train")
    ends = np.cumsum([shard.rows for shard in shards])
    rows = []
    for influence in found:
        record = table.slice(influence.row, 1).to_pylist()[0]
        if record[SUBJECT] in withdrawn:
            continue
        position = int(np.searchsorted(ends, influence.row, side="right"))
        values = {
            column.name: spell(column, record[column.name])
            for column in (*version.schema.features, version.schema.label)
            if not column.shape
        }
        first = int(ends[position]) - shards[position].rows
        rows.append(
            TrainingRow(
                shards[position].relpath,
                influence.row - first,
                values,
                influence.log_odds,
                influence.error,
                influence.p_value,
            )
        )
    return rows
