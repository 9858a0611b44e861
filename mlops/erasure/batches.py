"""The one open batch of a dataset: its steps, who works on it, when it may retrain, and what a deadline forces.

Decisions are pure; a batch row is written only by the runner that holds it (fencing token), each change with an event.
Leaves to others: the work of the steps (running.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlops.clock import SECOND_US, render_time
from mlops.deploy.erasure_rules import ErasureSpec
from mlops.erasure import sql_erasure
from mlops.erasure.sql_erasure import BATCHED, CERTIFIED, FENCED, BatchRow, RequestRow, RetrainRow
from mlops.errors import LedgerError, Reason, Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Ledger, Transaction
from mlops.training.sweep_book import is_driver_alive

GATHERING, REWRITING, RETRAINING, ROLLING_OUT, PURGING, CERTIFYING = STEPS = (
    "gathering",
    "rewriting",
    "retraining",
    "rolling-out",
    "purging",
    "certifying",
)
"""States of an open batch, in order: the step that is done next. After the last one it is `certified`."""


@dataclass(frozen=True)
class Timing:
    """When the retrain of a batch may start."""

    may_start: bool
    forced: str
    """Why it does not wait for the window; empty when it need not be forced."""
    text: str
    """For people."""


def decide_timing(
    rules: ErasureSpec,
    *,
    retrains: Sequence[RetrainRow],
    batch_id: str,
    due_us: int | None,
    now_us: int,
    ordered: str = "",
) -> Timing:
    """May the retrain start now?

    Args:
        rules: The project's.
        retrains: Of this dataset, any batch.
        batch_id: A batch that began its retrain goes on with it whatever the time.
        due_us: Nearest deadline in the batch.
        now_us: The time.
        ordered: Reason a person gave with `--now`; empty when nobody did.
    """
    mine = [row for row in retrains if row.batch_id == batch_id]
    if mine:
        return Timing(True, mine[0].forced, "the retrain has begun")
    # from the end, since one that was killed began long before it trained
    last_us = max((row.ended_us or row.started_us for row in retrains), default=None)
    next_us = 0 if last_us is None else last_us + round(rules.window * SECOND_US)
    if now_us >= next_us:
        return Timing(True, "", "no retrain was within the window")
    if ordered:
        return Timing(True, f"ordered: {ordered}", "a person ordered it")
    if due_us is not None and due_us - round(rules.reserve * SECOND_US) <= now_us:
        return Timing(True, f"deadline {render_time(due_us)}", "a deadline is near")
    text = f"the last retrain was at {render_time(last_us or 0)}; the next may begin {render_time(next_us)}"
    return Timing(False, "", text)


def find_due_us(requests: Iterable[RequestRow]) -> int | None:
    """The nearest deadline."""
    return min((row.deadline_us for row in requests), default=None)


@dataclass
class BatchBook:
    """The open batch of one dataset, held by this process."""

    ledger: Ledger
    row: BatchRow

    def move(self, state: str, **facts: Any) -> None:
        """The step is done: keep what it found, go to the next state.

        Raises:
            LedgerError: Another runner has taken the batch over.
        """
        with self.ledger.write() as transaction:
            self.write(transaction, state=state, note="", facts={**self.row.facts, **facts})
            transaction.append(f"erasure-batch.{state}", self.row.batch_id, {"facts": sorted(facts)})

    def note(self, text: str, **facts: Any) -> bool:
        """Keep an obstacle, and what is known so far; returns whether the obstacle is new."""
        is_new = text != self.row.note
        with self.ledger.write() as transaction:
            self.write(transaction, note=text, facts={**self.row.facts, **facts})
            if is_new and text:
                transaction.append("erasure-batch.held-up", self.row.batch_id, {"note": text})
        return is_new

    def beat(self) -> None:
        """This runner is alive."""
        with self.ledger.write() as transaction:
            self.write(transaction)

    def write(self, transaction: Transaction, **values: Any) -> None:
        """Change the row inside a transaction; fenced."""
        changes = {**values, "seen_us": transaction.now_us}
        if "state" in values:
            changes["changed_us"] = transaction.now_us
        token = self.row.fencing_token
        if not sql_erasure.update_batch(transaction, self.row.batch_id, fencing_token=token, **changes):
            raise LedgerError(
                f"{self.row.batch_id} was taken over by another `mlops erasure run`", hint="leave it to that one"
            )
        found = sql_erasure.find_batch(transaction.connection, self.row.batch_id)
        assert found is not None
        self.row = found

    def release(self) -> None:
        """Nobody is at work any more."""
        with self.ledger.write() as transaction:
            self.write(transaction, runner="")


def take_batch(ledger: Ledger, ids: Ids, dataset: str, *, runner: str) -> BatchBook | Refusal:
    """Hold the open batch of a dataset, made if there is none; refused while another runner lives.

    A runner that was killed is dead at once on the same machine, and after some minutes without a sign on another.
    """
    with ledger.write() as transaction:
        row = sql_erasure.find_open_batch(transaction.connection, dataset)
        now_us = transaction.now_us
        if row is None:
            row = BatchRow(ids.new("batch"), dataset, GATHERING, now_us, now_us, "", {}, "", runner, 1, now_us)
            sql_erasure.insert_many(transaction, sql_erasure.batches, [row])
            transaction.append("erasure-batch.opened", row.batch_id, {"dataset": dataset})
            return BatchBook(ledger, row)
        is_held = row.runner not in ("", runner) and is_driver_alive(row.runner, seen_us=row.seen_us, now_us=now_us)
        if is_held:
            text = f"{row.batch_id} is being worked on by {row.runner}; it is {row.state}"
            return Refusal((Reason("runner-at-work", text),))
        sql_erasure.take_over(transaction, row, runner=runner)
        taken = sql_erasure.find_batch(transaction.connection, row.batch_id)
    assert taken is not None
    return BatchBook(ledger, taken)


def join_requests(book: BatchBook) -> tuple[RequestRow, ...]:
    """Every fenced request of the dataset joins the batch while it gathers; returns the batch's requests."""
    with book.ledger.write() as transaction:
        book.write(transaction)
        fenced = sql_erasure.list_requests(transaction.connection, dataset=book.row.dataset, states=[FENCED])
        sql_erasure.update_requests(
            transaction, [row.request_id for row in fenced], state=BATCHED, batch_id=book.row.batch_id
        )
        return sql_erasure.list_requests(transaction.connection, batch_id=book.row.batch_id)


def begin_retrain(book: BatchBook, product: str, *, forced: str) -> None:
    """Count a retrain; doing it again changes nothing."""
    with book.ledger.write() as transaction:
        book.write(transaction, forced=forced)
        known = sql_erasure.list_retrains(transaction.connection, dataset=book.row.dataset)
        if any((row.batch_id, row.product) == (book.row.batch_id, product) for row in known):
            return
        now_us = transaction.now_us
        row = RetrainRow(book.row.batch_id, product, book.row.dataset, now_us, forced, None, "running", None)
        sql_erasure.insert_many(transaction, sql_erasure.retrains, [row])
        transaction.append("erasure-retrain.running", book.row.batch_id, {"product": product, "forced": forced})


def close_batch(book: BatchBook, transaction: Transaction) -> None:
    """Every request of the batch is answered, in the transaction that keeps the certificate."""
    rows = sql_erasure.list_requests(transaction.connection, batch_id=book.row.batch_id)
    sql_erasure.update_requests(
        transaction, [row.request_id for row in rows], state=CERTIFIED, ended_us=transaction.now_us
    )
    book.write(transaction, state=CERTIFIED, note="", runner="")
    transaction.append("erasure-batch.certified", book.row.batch_id, {"requests": len(rows)})
