"""Taking requests in: the fence first, then the record; a second request for a person joins the open one.

Only keyed hashes come in here. An unknown person is answered and recorded as any other, so nobody learns who is in
a dataset. Leaves to others: hashing ids (`hash_people`, called at the edge), signatures (tickets.py), batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlops.clock import render_time
from mlops.datasets.recipe import load_recipe
from mlops.datasets.subjects import hash_subjects, load_subject_key
from mlops.datasets.tombstones import withdraw_subjects
from mlops.deploy.erasure_rules import ErasureSpec, load_rules
from mlops.erasure import sql_erasure
from mlops.erasure.sql_erasure import FENCED, IDENTITY_HOLD, LEGAL_HOLD, RECEIVED, REFUSED, RequestRow
from mlops.errors import ProjectError, Reason, Refusal
from mlops.ledger.connection import Transaction
from mlops.places import Places
from mlops.project.opening import Project


@dataclass(frozen=True)
class Submission:
    """One asking for one person."""

    subject: bytes
    """Keyed hash."""
    channel: str
    """`command`, `tenant:<name>` or `retention`."""
    nonce: str
    """Never the same twice from one channel: a replay is refused."""
    is_identity_proven: bool = True


@dataclass(frozen=True)
class Accepted:
    """What the asker is told; the same for a known and an unknown person."""

    receipt_id: str
    request_id: str
    """Of the open request it is or has joined; not told to tenants."""
    deadline_us: int
    """Counted from this asking; the request itself may be due earlier."""
    is_new: bool


def hash_people(places: Places, dataset: str, subject_ids: Iterable[str]) -> list[bytes]:
    """Keyed hashes of raw ids; the ids go no further.

    Raises:
        DatasetError: Unknown dataset, or its key is missing.
        ProjectError: An id is empty.
    """
    ids = list(subject_ids)
    if not ids or not all(ids):
        raise ProjectError(
            "no subject id on standard input", hint="one id a line, for instance `cat ids.txt | mlops …`"
        )
    return hash_subjects(ids, key=load_subject_key(places, load_recipe(places, dataset).subject_key))


def submit_requests(
    project: Project, dataset: str, submissions: Sequence[Submission], *, rules: ErasureSpec | None = None
) -> tuple[Accepted | Refusal, ...]:
    """Fence and record in one transaction; the answers stand in the order of asking.

    Killed after the fence and before the record, the person is fenced and the next batch takes them along.

    Args:
        project: Where.
        dataset: Which.
        submissions: Who.
        rules: Of a caller who keeps them and knows the dataset: to read both files costs more than all the rest.

    Raises:
        DatasetError: Unknown dataset.
        ProjectError: The rules have problems.
    """
    if rules is None:
        load_recipe(project.places, dataset)
        rules = load_rules(project.places)
    withdraw_subjects(project.places, dataset, [entry.subject for entry in submissions if entry.is_identity_proven])
    with project.ledger.write() as transaction:
        replayed = sql_erasure.find_nonces(transaction.connection, {(it.channel, it.nonce) for it in submissions})
        known = sql_erasure.find_open_requests(
            transaction.connection, dataset, (entry.subject.hex() for entry in submissions)
        )
        intake = _Intake(project, dataset, transaction, rules.deadline_us(transaction.now_us), known, replayed)
        answers = tuple(intake.take(entry) for entry in submissions)
        intake.write()
    return answers


class _Intake:
    """One transaction's worth of submissions."""

    def __init__(
        self,
        project: Project,
        dataset: str,
        transaction: Transaction,
        deadline_us: int,
        known: dict[str, RequestRow],
        replayed: set[tuple[str, str]],
    ) -> None:
        self._project = project
        self._dataset = dataset
        self._transaction = transaction
        self._deadline_us = deadline_us
        self._known = dict(known)
        self._replayed = set(replayed)
        self._requests: list[RequestRow] = []
        self._submissions: list[sql_erasure.SubmissionRow] = []
        self._events: list[tuple[str, str, dict[str, object]]] = []

    def take(self, entry: Submission) -> Accepted | Refusal:
        now_us = self._transaction.now_us
        if (entry.channel, entry.nonce) in self._replayed:
            return Refusal((Reason("replayed", "this request was sent before; sign a new one"),))
        self._replayed.add((entry.channel, entry.nonce))
        subject = entry.subject.hex()
        row = self._known.get(subject)
        is_new = row is None
        if row is None:
            state, reason = (FENCED, "") if entry.is_identity_proven else (IDENTITY_HOLD, "identity is not proven yet")
            row = RequestRow(
                request_id=self._project.ids.new("erasure"),
                dataset=self._dataset,
                subject=subject,
                channel=entry.channel,
                state=state,
                received_us=now_us,
                deadline_us=self._deadline_us,
                fenced_us=now_us if state == FENCED else None,
                ended_us=None,
                batch_id=None,
                reason=reason,
            )
            self._known[subject] = row
            self._requests.append(row)
            self._note(row.request_id, RECEIVED, {"dataset": self._dataset, "deadline_us": row.deadline_us})
            self._note(row.request_id, state, {"channel": entry.channel})
        receipt_id = self._project.ids.new("receipt")
        self._submissions.append(
            sql_erasure.SubmissionRow(receipt_id, row.request_id, entry.channel, entry.nonce, now_us)
        )
        if not is_new:
            self._note(row.request_id, "repeated", {"channel": entry.channel})
        return Accepted(receipt_id, row.request_id, self._deadline_us, is_new)

    def write(self) -> None:
        sql_erasure.insert_many(self._transaction, sql_erasure.requests, self._requests)
        sql_erasure.insert_many(self._transaction, sql_erasure.submissions, self._submissions)
        self._transaction.append_many(self._events)

    def _note(self, request_id: str, state: str, body: dict[str, object]) -> None:
        self._events.append((f"erasure-request.{state}", request_id, body))


_MOVES: dict[str, tuple[frozenset[str], str]] = {
    "verify": (frozenset({RECEIVED, IDENTITY_HOLD}), FENCED),
    "refuse": (frozenset({RECEIVED, IDENTITY_HOLD}), REFUSED),
    "hold": (frozenset({FENCED}), LEGAL_HOLD),
    "release": (frozenset({LEGAL_HOLD}), FENCED),
}
"""What a person may do to a request: from which states, to which one. Nothing that is fenced can be refused."""


def move_request(project: Project, request_id: str, *, how: str, reason: str) -> RequestRow | Refusal:
    """A person verifies, refuses, holds or releases a request; the reason is kept.

    Args:
        project: Where.
        request_id: Of the request, or of a receipt.
        how: `verify`, `refuse`, `hold` (a legal duty to keep the rows; the fence stays) or `release`.
        reason: For the record.

    Raises:
        ProjectError: No such request, or no reason where one is needed.
    """
    allowed, state = _MOVES[how]
    if not reason.strip() and how in ("refuse", "hold"):
        raise ProjectError(f"to {how} a request needs a reason", hint="--reason 'tax records must be kept until 2027'")
    with project.ledger.read() as connection:
        row = sql_erasure.find_request(connection, request_id)
    if row is None:
        raise ProjectError(f"there is no request {request_id!r}", hint="`mlops erasure list` shows them")
    if row.state not in allowed:
        text = f"{row.request_id} is {row.state}; `{how}` is for requests that are {' or '.join(sorted(allowed))}"
        return Refusal((Reason("wrong-state", text),))
    if how == "verify":
        withdraw_subjects(project.places, row.dataset, [bytes.fromhex(row.subject)])
    with project.ledger.write() as transaction:
        current = sql_erasure.find_request(transaction.connection, row.request_id)
        if current is None or current.state not in allowed:
            return Refusal((Reason("wrong-state", f"{row.request_id} was moved by somebody else meanwhile"),))
        fenced_us = current.fenced_us or (transaction.now_us if state == FENCED else None)
        ended_us = transaction.now_us if state == REFUSED else None
        sql_erasure.update_requests(
            transaction, [row.request_id], state=state, reason=reason.strip(), fenced_us=fenced_us, ended_us=ended_us
        )
        moved = sql_erasure.find_request(transaction.connection, row.request_id)
    assert moved is not None
    return moved


def render_deadline(deadline_us: int, *, now_us: int) -> str:
    """`2026-12-27T10:00:00Z, 30 days left`."""
    days = (deadline_us - now_us) / 86_400_000_000
    return f"{render_time(deadline_us)}, {days:.0f} days left" if days >= 0 else f"{render_time(deadline_us)}, OVERDUE"
