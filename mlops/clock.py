"""Time comes in as a value: pure code takes `now_us`, shells take a `Clock`.

All times are integer microseconds since the Unix epoch, UTC.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


class Clock(Protocol):
    """Where the time comes from."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        ...

    def monotonic_us(self) -> int:
        """Microseconds that never go back, for measuring durations."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Microseconds since the epoch, UTC."""
        return time.time_ns() // 1_000

    def monotonic_us(self) -> int:
        """Microseconds of the monotonic clock."""
        return time.monotonic_ns() // 1_000

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class FakeClock:
    """A clock that tests and simulations move by hand; `sleep` moves it."""

    def __init__(self, now_us: int = 1_800_000_000 * SECOND_US) -> None:
        self._now_us = now_us
        self._monotonic_us = 0

    def now_us(self) -> int:
        """The time it was set to."""
        return self._now_us

    def monotonic_us(self) -> int:
        """Sum of all forward moves."""
        return self._monotonic_us

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds`."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_us += round(seconds * SECOND_US)
        self._monotonic_us += round(seconds * SECOND_US)

    def jump(self, seconds: float) -> None:
        """Move the wall clock only (may be negative), as a wrong NTP server does."""
        self._now_us += round(seconds * SECOND_US)


def render_time(time_us: int) -> str:
    """`2026-11-22T10:00:00Z`."""
    return datetime.fromtimestamp(time_us / SECOND_US, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
