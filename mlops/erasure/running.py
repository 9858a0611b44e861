"""START HERE for erasure. A batch, step by step: gather, rewrite, retrain, roll out, purge, certify.

Each step can be killed anywhere and done again: it looks at what is there, does what is missing, and moves the batch's
row on in one transaction. What cannot go on is *held up*, with reasons, and people are told; a deadline is kept all the
same.
Leaves to others: the work of the steps (`Work`, in project_work.py), what may start when (batches.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mlops.budgets.notices import add_notice
from mlops.clock import SECOND_US
from mlops.datasets.fence import find_withdrawn
from mlops.datasets.forgetting import find_expired
from mlops.datasets.returned import sweep_returned
from mlops.datasets.tombstones import load_tombstones
from mlops.datasets.version import DatasetVersion, load_dataset_version
from mlops.deploy.erased import CERTIFICATE_STEP, record_certificate
from mlops.deploy.erasure_rules import ErasureSpec, load_rules
from mlops.erasure import batches, sql_erasure
from mlops.erasure.batches import BatchBook
from mlops.erasure.certificate import add_certificate, certificates_folder
from mlops.erasure.clean_version import (
    commit_state,
    compare_versions,
    describe_version,
    find_uncommitted,
    make_clean_version,
)
from mlops.erasure.requests import Submission, submit_requests
from mlops.erasure.retraining import ReleasedVersion
from mlops.erasure.rollout import Move
from mlops.erasure.sql_erasure import BATCHED, CERTIFIED, FENCED, BatchRow, RequestRow
from mlops.erasure.work import People, Work
from mlops.errors import MlopsError, Reason, Refusal
from mlops.files import write_atomically
from mlops.project.opening import Project
from mlops.provenance.keys import MACHINE, make_key
from mlops.provenance.sql_steps import find_steps
from mlops.training.sweep_book import this_driver

_BEAT_SECONDS = 20.0


@dataclass(frozen=True)
class RunOutcome:
    """How far a run came."""

    batch: BatchRow
    held: Refusal | None
    """Why it did not come to the end; the next run goes on from here."""
    requests: int
    """In the batch."""


@dataclass
class Run:
    """One run over the open batch of a dataset."""

    project: Project
    dataset: str
    rules: ErasureSpec
    work: Work
    book: BatchBook
    ordered: str
    """Reason of `--now` or `--accept`; empty without them."""
    accepted: tuple[str, ...]
    """`<store>: <what>` of things that a person lets stay; each stands in the certificate, with the reason."""
    say: Callable[[str], None]
    hook: Callable[[str], None]

    @property
    def requests(self) -> tuple[RequestRow, ...]:
        """Of the batch; while it gathers also those that will join."""
        with self.project.ledger.read() as connection:
            mine = sql_erasure.list_requests(connection, batch_id=self.book.row.batch_id)
            joining = sql_erasure.list_requests(connection, dataset=self.dataset, states=[FENCED])
        return (*mine, *joining) if self.book.row.state == batches.GATHERING else mine

    @property
    def subjects(self) -> frozenset[bytes]:
        """Keyed hashes of the batch's people."""
        return frozenset(bytes.fromhex(row.subject) for row in self.requests)

    @property
    def people(self) -> frozenset[tuple[str, bytes]]:
        """The same with the dataset."""
        return frozenset((self.dataset, subject) for subject in self.subjects)

    @property
    def version(self) -> DatasetVersion:
        """What is pinned now."""
        return load_dataset_version(self.project.places, self.dataset)

    def tell(self, action: str, text: str) -> None:
        """People are to know; delivered by the outbox."""
        with self.project.ledger.write() as transaction:
            add_notice(transaction, scope=f"erasure:{self.dataset}", action=action, text=text)


def run_erasure(
    project: Project,
    dataset: str,
    work: Work,
    *,
    ordered: str = "",
    accepted: tuple[str, ...] = (),
    runner: str = "",
    say: Callable[[str], None] = lambda line: None,
    hook: Callable[[str], None] = lambda name: None,
) -> RunOutcome | Refusal:
    """Carry the open batch of a dataset as far as it goes, and the next one too when somebody in it is due.

    Args:
        project: Where.
        dataset: Which.
        work: Trains, serves and purges.
        ordered: Why a person wants it now, inside the window, or accepts that something stays.
        accepted: What stays, as the refusal names it: `<store>: <what>`.
        runner: Who works on it; default this process.
        say: Prints one line of progress.
        hook: Told the name of each step just before it; tests end the process there.

    Returns:
        How far it came; a refusal when another runner is at work.

    Raises:
        MlopsError: A step failed that has no rule for failing; run again to go on.
    """
    rules = load_rules(project.places)
    book = batches.take_batch(project.ledger, project.ids, dataset, runner=runner or this_driver())
    if isinstance(book, Refusal):
        return book
    run = Run(project, dataset, rules, work, book, ordered, accepted, say, hook)
    with _beating(run):
        _invite(run)
        held: Refusal | None = None
        while book.row.state != CERTIFIED and held is None:
            say(f"[{batches.STEPS.index(book.row.state) + 1}/{len(STEPS)}] {book.row.state}")
            hook(f"before-{book.row.state}")
            held = STEPS[book.row.state](run)
        count = len(run.requests)
        if held is not None:
            _hold_up(run, held)
            book.release()
    if held is None and _find_due(run):
        say(f"people who waited behind this batch of {dataset} are due: theirs follows")
        return run_erasure(project, dataset, work, runner=runner, say=say, hook=hook)
    return RunOutcome(book.row, held, count)


def gather(run: Run) -> Refusal | None:
    """1. Everybody who is fenced joins, unless a retrain would come too soon after the last one."""
    requests, version, row = run.requests, run.version, run.book.row
    if not requests:
        return Refusal((Reason("nothing-open", f"nobody waits to be forgotten in {run.dataset}"),))
    obstacle = find_uncommitted(run.project.places, run.dataset)
    if obstacle is not None:
        return obstacle
    to_retrain = _find_fenced_releases(run)
    forced = ""
    if to_retrain:
        with run.project.ledger.read() as connection:
            retrains = sql_erasure.list_retrains(connection, dataset=run.dataset)
        timing = batches.decide_timing(
            run.rules,
            retrains=retrains,
            batch_id=row.batch_id,
            due_us=batches.find_due_us(requests),
            now_us=run.project.clock.now_us(),
            ordered=run.ordered,
        )
        if not timing.may_start:
            return Refusal((Reason("window", timing.text),))
        forced = timing.forced
    batches.join_requests(run.book)
    run.book.move(batches.REWRITING, before=describe_version(version), forced=forced)
    return None


def rewrite(run: Run) -> Refusal | None:
    """2. Their rows leave the pinned version, in one signed commit; nobody else's row or shard changes."""
    made = make_clean_version(run.project, run.dataset, run.subjects)
    if isinstance(made, Refusal):
        return made
    before = run.book.row.facts["before"]
    changes = compare_versions(
        load_dataset_version(run.project.places, run.dataset, revision=before["dvc_digest"]), run.version
    )
    run.say(f"      {changes['rows_removed']} rows left {len(changes['shards'])} shards")
    run.book.move(batches.RETRAINING, **made, **changes)
    return None


def retrain(run: Run) -> Refusal | None:
    """3. Products whose newest version was trained on them are trained anew with the released parameters, and gated."""
    facts: dict[str, Any] = dict(run.book.row.facts.get("retrains", {}))
    for released in _find_fenced_releases(run):
        batches.begin_retrain(run.book, released.product, forced=str(run.book.row.facts.get("forced", "")))
        run.hook(f"before-retrain-{released.product}")
        outcome = "refused"
        try:
            made = run.work.retrain(released, run.subjects)
        except MlopsError as error:
            outcome = "failed"
            made = Refusal((Reason("retrain-failed", f"{released.product}: {error.message}"),))
        number = None if isinstance(made, Refusal) else made.number
        with run.project.ledger.write() as transaction:
            ended = "passed" if number is not None else outcome
            sql_erasure.end_retrain(transaction, run.book.row.batch_id, released.product, outcome=ended, number=number)
        if isinstance(made, Refusal):
            return _with_way_out(made, released.product) if outcome == "refused" else made
        facts[released.product] = vars(made)
        run.book.note("", retrains=facts)
    run.book.move(batches.ROLLING_OUT, retrains=facts)
    return None


def _with_way_out(refusal: Refusal, product: str) -> Refusal:
    """One trial with the old parameters may miss a limit by chance; it would miss it in the same way each time."""
    text = f"if this stays so: `mlops release {product}` searches anew on data without them, and the next run goes on"
    return Refusal((*refusal.reasons, Reason("way-out", text)))


def roll_out(run: Run) -> Refusal | None:
    """4. Every environment moves away from versions that were trained on them, by its own rules."""
    moves = _move_environments(run, people=run.people, is_due=_is_due(run.requests, run))
    reasons = tuple(
        replace(reason, text=f"{move.environment}: {reason.text}")
        for move in moves
        if move.kind == "held-up"
        for reason in move.reasons
    )
    if reasons:
        return Refusal(reasons)
    numbers = _find_clean_numbers(run, run.people)  # listed now: what is purged can no longer say whom it held
    models = [{**vars(it), "replaced_by": numbers.get(it.product)} for it in run.work.list_made_from(run.subjects)]
    run.book.move(batches.PURGING, models=models)
    return None


def purge(run: Run) -> Refusal | None:
    """5. What was made from them is removed from every store; a store that is down is tried again by the next run."""
    receipts = run.work.purge(run.subjects)
    past = [it for it in run.book.row.facts.get("purge", []) if it["is_gone"]]  # what was left is looked for again
    known = {(it["store"], it["what"], it["digest"]): it for it in past}
    known |= {(it.store, it.what, it.digest): vars(it) for it in receipts}
    kept = [known[name] for name in sorted(known)]
    run.book.note(run.book.row.note, purge=kept)
    exceptions = {**run.book.row.facts.get("exceptions", {}), **dict.fromkeys(run.accepted, run.ordered)}
    left = [it for it in kept if not it["is_gone"] and f"{it['store']}: {it['what']}" not in exceptions]
    run.book.note(run.book.row.note, exceptions=exceptions)
    if left:
        return Refusal(tuple(Reason("not-purged", f"{it['store']}: {it['what']}: {it['reason']}") for it in left))
    commit = commit_state(
        run.project, run.dataset, message=f"Name what was purged of {run.dataset}\n\nIt must not come back."
    )
    if isinstance(commit, Refusal):
        return commit
    run.say(f"      {len(kept)} objects are gone")
    run.book.move(batches.CERTIFYING)
    return None


def certify(run: Run) -> Refusal | None:
    """6. One signed statement, and every request of the batch is answered, in one transaction."""
    key = make_key(run.project.places.keys_folder, MACHINE, clock=run.project.clock)
    requests = run.requests
    with run.project.ledger.write() as transaction:
        row = add_certificate(transaction, run.book.row, requests, key=key)
        batches.close_batch(run.book, transaction)
    publish_certificates(run.project)
    run.say(f"      certificate {row.number} for {len(requests)} requests")
    return None


STEPS: dict[str, Callable[[Run], Refusal | None]] = dict(
    zip(batches.STEPS, (gather, rewrite, retrain, roll_out, purge, certify), strict=True)
)


def publish_certificates(project: Project) -> None:
    """A file and a signed step per certificate; those that a crash left out are made by the next run."""
    with project.ledger.read() as connection:
        rows = sql_erasure.list_certificates(connection)
        known = {step.outputs["certificate"] for step in find_steps(connection, kind=CERTIFICATE_STEP)}
        for row in rows:
            path = certificates_folder(project.places) / f"{row.number:06d}.json"
            if not path.is_file():
                write_atomically(path, row.envelope)
            if row.digest not in known:
                record_certificate(
                    project.step_book, connection, dataset=row.dataset, number=row.number, certificate=row.digest,
                    started_us=row.at_us,
                )  # fmt: skip


def _invite(run: Run) -> None:
    """Rows past their retention join by themselves, and people whose record a crash left out after their fence."""
    publish_certificates(run.project)
    returned = sweep_returned(run.project.places, run.dataset)
    if returned:
        run.tell("swept", f"{len(returned)} purged objects of {run.dataset} had come back and were removed again")
    if run.book.row.state != batches.GATHERING:
        return
    places, version = run.project.places, run.version
    withdrawn = find_withdrawn(places, version)
    expired = find_expired(version, now_us=run.project.clock.now_us()) - load_tombstones(places, run.dataset)
    known = {subject.hex() for subject in run.subjects}
    with run.project.ledger.read() as connection:
        open_ones = sql_erasure.find_open_requests(connection, run.dataset, (it.hex() for it in withdrawn))
    lost = {subject for subject in withdrawn if subject.hex() not in known | set(open_ones)}
    now_us = run.project.clock.now_us()
    asked = [Submission(it, "retention", f"{it.hex()}:{now_us}") for it in sorted(expired)]
    asked += [Submission(it, "fence", f"{it.hex()}:{now_us}") for it in sorted(lost)]
    if asked:
        submit_requests(run.project, run.dataset, asked)
        run.say(f"{len(expired)} people past retention and {len(lost)} fenced without a record join the batch")


def _find_fenced_releases(run: Run) -> list[ReleasedVersion]:
    return [it for it in run.work.list_newest() if run.work.is_made_from(it, run.people)]


def _find_clean_numbers(run: Run, people: People) -> dict[str, int]:
    """Product to its newest version, where that one is clean."""
    return {it.product: it.number for it in run.work.list_newest() if not run.work.is_made_from(it, people)}


def _move_environments(run: Run, *, people: People, is_due: bool) -> tuple[Move, ...]:
    numbers = _find_clean_numbers(run, people)
    moves = run.work.roll_out(numbers, people, is_due=is_due)
    done = [
        {
            "environment": move.environment,
            "product": move.product,
            "kind": move.kind,
            "number": move.number,
            "left": list(move.left),
            "at_us": move.at_us,
            "why": [reason.text for reason in move.reasons],
        }
        for move in moves
        if move.kind != "held-up" or move.left
    ]
    if done:
        run.book.note(run.book.row.note, rollout=[*run.book.row.facts.get("rollout", []), *done])
    for move in moves:
        if move.kind in ("stopped", "fell-back"):
            why = "; ".join(reason.text for reason in move.reasons)
            run.tell(move.kind, f"{move.product} in {move.environment} {move.kind}: an erasure is due and {why}")
    return moves


def _is_due(requests: Iterable[RequestRow], run: Run) -> bool:
    due_us = batches.find_due_us(requests)
    ahead_us = round(run.rules.act_before * SECOND_US)
    return due_us is not None and run.project.clock.now_us() >= due_us - ahead_us


def _hold_up(run: Run, held: Refusal) -> None:
    """Note it, tell people once, and keep the deadline whatever the reason is."""
    if held.reasons[0].code == "nothing-open":
        return
    is_new = run.book.note(held.render_text())
    if is_new and held.reasons[0].code != "window":
        run.tell("held-up", f"forgetting people in {run.dataset} is held up: {held.render_text()}")
    due = _find_due(run)
    if due:
        run.hook("before-deadline")
        _move_environments(run, people=due, is_due=True)


def _find_due(run: Run) -> People:
    """Whoever is due, in the batch or waiting behind it: a batch that is stuck excuses nobody's deadline."""
    with run.project.ledger.read() as connection:
        waiting = sql_erasure.list_requests(connection, dataset=run.dataset, states=[FENCED, BATCHED])
    return frozenset((run.dataset, bytes.fromhex(row.subject)) for row in waiting if _is_due([row], run))


@contextmanager
def _beating(run: Run) -> Iterator[None]:
    """Signs of life for runners on other machines; it never writes what a former holder may not."""
    ending = threading.Event()
    ledger, row = run.project.ledger, run.book.row

    def beat() -> None:
        while not ending.wait(_BEAT_SECONDS):
            with ledger.write() as transaction:
                is_mine = sql_erasure.update_batch(
                    transaction, row.batch_id, fencing_token=row.fencing_token, seen_us=transaction.now_us
                )
            if not is_mine:
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
