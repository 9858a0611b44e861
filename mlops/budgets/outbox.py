"""Delivers warnings: at least once, to the log, a webhook or a command, with retries that can be seen.

The warning was written in the transaction that crossed the threshold; delivery happens later and is itself an event.
Leaves to others: crossing (`accounts`).
"""

from __future__ import annotations

import json
import logging
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.budgets.sql_budgets import warnings
from mlops.clock import SECOND_US
from mlops.ledger.connection import Ledger

FIRST_RETRY_US = 10 * SECOND_US
LONGEST_RETRY_US = 3_600 * SECOND_US
Sink = Callable[["Notice"], None]
"""Delivers one warning or raises."""


@dataclass(frozen=True)
class Notice:
    """A threshold that was crossed."""

    scope: str
    period_start_us: int
    basis_points: int
    action: str
    text: str
    crossed_us: int
    attempts: int
    delivered_us: int | None
    last_error: str


def deliver_due(ledger: Ledger, sinks: Sequence[Sink], *, now_us: int) -> tuple[Notice, ...]:
    """Try every warning that is due; one that fails is tried again later, doubling the wait up to an hour.

    A warning counts as delivered when every sink took it; a sink may therefore see it more than once.
    """
    with ledger.read() as connection:
        due = list_warnings(connection, is_due_at_us=now_us)
    for warning in due:
        error = _try_sinks(warning, sinks)
        with ledger.write() as transaction:
            _record(transaction.connection, warning, error=error, now_us=transaction.now_us)
            body = {"period_start_us": warning.period_start_us, "basis_points": warning.basis_points, "error": error}
            transaction.append("warning.failed" if error else "warning.delivered", warning.scope, body)
    return due


def list_warnings(connection: sa.Connection, *, is_due_at_us: int | None = None) -> tuple[Notice, ...]:
    """All warnings by time; with a time, those not delivered and due for a try."""
    query = sa.select(warnings).order_by(warnings.c.crossed_us, warnings.c.scope, warnings.c.basis_points)
    if is_due_at_us is not None:
        query = query.where(warnings.c.delivered_us.is_(None), warnings.c.next_attempt_us <= is_due_at_us)
    return tuple(
        Notice(
            scope=row.scope,
            period_start_us=row.period_start_us,
            basis_points=row.basis_points,
            action=row.action,
            text=row.text,
            crossed_us=row.crossed_us,
            attempts=row.attempts,
            delivered_us=row.delivered_us,
            last_error=row.last_error,
        )
        for row in connection.execute(query)
    )


def log_sink(warning: Notice) -> None:
    """To the log."""
    logging.getLogger("mlops.budgets").warning("%s", warning.text)


def make_command_sink(command: Sequence[str], *, timeout_seconds: float = 30.0) -> Sink:
    """To a command, with the warning as JSON on its standard input."""

    def sink(warning: Notice) -> None:
        subprocess.run(  # the command stands in the project's configuration, written by its owner
            list(command), input=_to_json(warning), text=True, check=True, capture_output=True, timeout=timeout_seconds
        )

    return sink


def make_webhook_sink(url: str, *, timeout_seconds: float = 10.0) -> Sink:
    """To a web address, as a POST of JSON.

    Raises:
        ValueError: Not an http(s) address.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is not an http address")

    def sink(warning: Notice) -> None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
            url, data=_to_json(warning).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=timeout_seconds):  # noqa: S310 - as above
            pass

    return sink


def _to_json(warning: Notice) -> str:
    content = {"scope": warning.scope, "part": warning.basis_points / 100, "action": warning.action}
    return json.dumps({**content, "text": warning.text, "crossed_us": warning.crossed_us}, sort_keys=True)


def _try_sinks(warning: Notice, sinks: Sequence[Sink]) -> str:
    for sink in sinks:
        try:
            sink(warning)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]
    return ""


def _record(connection: sa.Connection, warning: Notice, *, error: str, now_us: int) -> None:
    wait_us = min(FIRST_RETRY_US << min(warning.attempts, 20), LONGEST_RETRY_US)
    connection.execute(
        warnings.update()
        .where(
            warnings.c.scope == warning.scope,
            warnings.c.period_start_us == warning.period_start_us,
            warnings.c.basis_points == warning.basis_points,
        )
        .values(
            attempts=warnings.c.attempts + 1,
            delivered_us=None if error else now_us,
            next_attempt_us=now_us + wait_us,
            last_error=error,
        )
    )
