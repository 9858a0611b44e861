"""Checks as child processes of this one: they share what was loaded before, and can be killed at their limit.

A child sees memory as it was at the fork, so rows and answers are loaded once. Children hide the project's keys from
the candidate's own code where the machine can, and die with this process.
Leaves to others: which check runs when (check_crew.py), machines that are paid for (leased_crew.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mlops.errors import Refusal
from mlops.evaluation.check_crew import Heard, crashed, hear_one
from mlops.evaluation.policy import AnyRule
from mlops.evaluation.verdicts import Findings
from mlops.provenance.confinement import confine

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Child:
    process: Any
    connection: Connection


class ForkCrew:
    """Implements `CheckCrew`.

    Args:
        hear: Runs a check, in the child.
        size: How many at once.
        hidden: Folder that children cannot read.
    """

    def __init__(self, hear: Callable[[AnyRule], Findings], *, size: int, hidden: Path | None = None) -> None:
        self._hear = hear
        self._size = size
        self._hidden = hidden
        self._children: dict[str, _Child] = {}

    def count_free(self) -> int:
        """See `CheckCrew`."""
        return self._size - len(self._children)

    def begin(self, rule: AnyRule) -> None:
        """See `CheckCrew`."""
        self._children[rule.name] = _fork(lambda: hear_one(rule, self._hear), hidden=self._hidden)

    def next_ended(self, *, timeout_seconds: float) -> list[tuple[str, Heard]]:
        """See `CheckCrew`."""
        if self._children:
            wait([child.connection for child in self._children.values()], timeout=timeout_seconds)
        ended: list[tuple[str, Heard]] = []
        for name, child in list(self._children.items()):
            if child.connection.poll():
                ended.append((name, _receive(child)))
                self.stop(name)
        return ended

    def stop(self, name: str) -> None:
        """See `CheckCrew`."""
        _end(self._children.pop(name))

    def look_at_lease(self) -> Refusal | None:
        """Processes of this machine are not paid for."""
        return None

    def close(self) -> None:
        """See `CheckCrew`."""
        for name in list(self._children):
            self.stop(name)


def call_apart(function: Callable[[], Any], *, time_limit: float, hidden: Path | None = None) -> Any | None:
    """What `function` gives in a child process; None when it fails, dies or takes too long."""
    child = _fork(function, hidden=hidden)
    try:
        if not child.connection.poll(time_limit):
            return None
        received = child.connection.recv()
    except (EOFError, OSError):
        return None
    finally:
        _end(child)
    return None if isinstance(received, _Failed) else received


@dataclass(frozen=True)
class _Failed:
    why: str


def _fork(function: Callable[[], Any], *, hidden: Path | None) -> _Child:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, function, hidden), daemon=True)
    process.start()
    theirs.close()
    return _Child(process, ours)


def _work(connection: Connection, function: Callable[[], Any], hidden: Path | None) -> None:
    """The child: on one thread, so that sums are the same on any machine and children do not fight for cores."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if hidden is not None and hidden.is_dir():
        confine(hidden=hidden)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        answer = function()
    except Exception as error:
        answer = _Failed(f"{type(error).__name__}: {error}")
    try:
        connection.send(answer)
    except Exception as error:  # what the check gave cannot be pickled
        connection.send(_Failed(f"{type(error).__name__}: {error}"))


def _receive(child: _Child) -> Heard:
    try:
        received = child.connection.recv()
    except (EOFError, OSError):
        child.process.join(timeout=1)
        return crashed(f"its process died with exit code {child.process.exitcode}")
    return received if isinstance(received, Heard) else crashed(getattr(received, "why", "it gave no findings"))


def _end(child: _Child) -> None:
    """Kill the child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.process.pid, signal.SIGKILL)
    child.process.join()
    child.connection.close()
