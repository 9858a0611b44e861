"""Ends this process when the paid time is over, whoever is dead: the guarantee that a budget is never overrun.

A thread of its own compares the local monotonic clock with the deadline; the driver moves the deadline after each
renewal.
Leaves to others: paying (mlops/budgets), moving the deadline (mlops/training/ray_group).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

EXIT_UNPAID = 75
"""Exit code of a worker whose lease ran out (EX_TEMPFAIL)."""
LOOK_SECONDS = 0.25


class Watchdog:
    """One deadline, kept by a daemon thread.

    Args:
        until_us: Local monotonic time, microseconds.
        end: What to do when it is over; the default ends the process at once, without any cleaning up.
    """

    def __init__(self, until_us: int, *, end: Callable[[], None] = lambda: os._exit(EXIT_UNPAID)) -> None:
        self._until_us = until_us
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mlops-watchdog", daemon=True)
        self._thread.start()

    def extend(self, until_us: int) -> None:
        """Move the deadline."""
        self._until_us = until_us

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            if time.monotonic_ns() // 1_000 > self._until_us:
                self._end()
                return
