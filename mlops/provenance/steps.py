"""Steps: each does its work once per set of inputs, and leaves one row that is memo and attestation at once.

Leaves to others: the work (an `action` given by the caller) and the form of the signed statement (`Signer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mlops.clock import Clock
from mlops.errors import Refusal
from mlops.files import write_atomically
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.provenance import sql_steps
from mlops.provenance.digest import digest_inputs
from mlops.provenance.sql_steps import StepRecord


class Signer(Protocol):
    """Turns a finished step into a signed DSSE envelope."""

    def sign_step(self, record: StepRecord) -> str:
        """The envelope as JSON text."""
        ...


@dataclass(frozen=True)
class StepOutcome:
    """What an action produced."""

    outputs: dict[str, str]
    """Name to `sha256:…`; becomes the statement's subject."""
    facts: dict[str, Any]
    """Small JSON results."""


class StepMissing(Exception):  # noqa: N818 - it is an answer to `--dry-run`, no error
    """A preview met a step that has not been done yet."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class StepRun:
    """A step that is done, now or earlier."""

    record: StepRecord
    is_reused: bool

    def render_text(self) -> str:
        """`12.3 s: <summary>`, or `reused: <summary>`."""
        seconds = (self.record.finished_us - self.record.started_us) / 1e6
        return f"{'reused' if self.is_reused else f'{seconds:.1f} s'}: {self.record.facts['summary']}"


class StepBook:
    """The steps of one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        ids: Ids,
        signer: Signer | None,
        find_sidecar: Callable[[StepRecord], Path | None] = lambda record: None,
    ) -> None:
        """Open the book.

        Args:
            ledger: Where steps are kept.
            clock: Times of steps.
            ids: Names of steps.
            signer: Signs them; None leaves them unsigned (tests).
            find_sidecar: File beside a step's artefact that repeats its envelope, for whoever has only the artefact.
        """
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._signer = signer
        self._find_sidecar = find_sidecar

    def run(
        self,
        kind: str,
        *,
        product: str,
        inputs: Mapping[str, str],
        action: Callable[[], StepOutcome],
        is_present: Callable[[StepRecord], bool] = lambda record: True,
    ) -> StepRun:
        """Do the step, or reuse the newest one with the same inputs whose outputs are still present.

        Args:
            kind: What is done; see `StepRecord.kind`.
            product: For which product.
            inputs: Everything the outcome depends on, name to `sha256:…`.
            action: Does the work. When it raises, nothing is recorded.
            is_present: Whether an earlier step's outputs can still be used.
        """
        ended = self.run_or_refuse(kind, product=product, inputs=inputs, action=action, is_present=is_present)
        assert isinstance(ended, StepRun), "an action that cannot refuse did"
        return ended

    def run_or_refuse(
        self,
        kind: str,
        *,
        product: str,
        inputs: Mapping[str, str],
        action: Callable[[], StepOutcome | Refusal],
        is_present: Callable[[StepRecord], bool] = lambda record: True,
    ) -> StepRun | Refusal:
        """As `run`, for an action that may end in a *no*; a *no* is returned and not recorded as done."""
        found = self.find(kind, product=product, inputs=inputs, is_present=is_present)
        if found is not None:
            self._write_sidecar(found)
            return StepRun(record=found, is_reused=True)
        started_us = self._clock.now_us()
        outcome = action()
        if isinstance(outcome, Refusal):
            return outcome
        record = self.record(kind, product=product, inputs=inputs, outcome=outcome, started_us=started_us)
        return StepRun(record=record, is_reused=False)

    def find(
        self,
        kind: str,
        *,
        product: str,
        inputs: Mapping[str, str],
        is_present: Callable[[StepRecord], bool] = lambda record: True,
    ) -> StepRecord | None:
        """The newest step with these inputs whose outputs are still present."""
        with self._ledger.read() as connection:
            rows = list(sql_steps.find_steps(connection, kind=kind, product=product, memo_key=digest_inputs(inputs)))
        return next((record for record in rows if is_present(record)), None)

    def record(
        self, kind: str, *, product: str, inputs: Mapping[str, str], outcome: StepOutcome, started_us: int
    ) -> StepRecord:
        """Sign and keep a finished step, in one transaction with its event."""
        record = StepRecord(
            step_id=self._ids.new("step"),
            kind=kind,
            product=product,
            memo_key=digest_inputs(inputs),
            started_us=started_us,
            finished_us=self._clock.now_us(),
            inputs=dict(inputs),
            outputs=dict(outcome.outputs),
            facts=dict(outcome.facts),
            envelope=None,
        )
        if self._signer is not None:
            record = replace(record, envelope=self._signer.sign_step(record))
        with self._ledger.write() as transaction:
            sql_steps.insert_step(transaction.connection, record)
            transaction.append(
                "step.finished",
                record.step_id,
                {"kind": kind, "product": product, "memo_key": record.memo_key, "outputs": record.outputs},
            )
        self._write_sidecar(record)
        return record

    def _write_sidecar(self, record: StepRecord) -> None:
        """After the row, since the row is the record; a kill in between is mended when the step is reused."""
        path = self._find_sidecar(record)
        if path is None or record.envelope is None:
            return
        if not path.exists() or path.read_text(encoding="utf-8") != record.envelope:
            write_atomically(path, record.envelope)


@dataclass(frozen=True)
class Workbench:
    """What every step of a release works with."""

    places: Places
    ledger: Ledger
    clock: Clock
    ids: Ids
    book: StepBook
    say: Callable[[str], None] = lambda line: None
    """Prints one line of progress."""


class PreviewBook(StepBook):
    """Finds finished steps and does none: raises `StepMissing` where work would begin (`--dry-run`)."""

    def run_or_refuse(
        self,
        kind: str,
        *,
        product: str,
        inputs: Mapping[str, str],
        action: Callable[[], StepOutcome | Refusal],
        is_present: Callable[[StepRecord], bool] = lambda record: True,
    ) -> StepRun | Refusal:
        """The finished step.

        Raises:
            StepMissing: There is none.
        """
        found = self.find(kind, product=product, inputs=inputs, is_present=is_present)
        if found is None:
            raise StepMissing(kind)
        return StepRun(record=found, is_reused=True)
