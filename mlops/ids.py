"""Identifiers: sortable by time, unique without coordination, prefixed by what they name."""

from __future__ import annotations

import secrets
from typing import Protocol

from mlops.clock import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32, as in ULID


class Ids(Protocol):
    """Where new identifiers come from."""

    def new(self, prefix: str) -> str:
        """A new identifier such as `sweep-01jd3…`."""
        ...


class TimeIds:
    """48 bits of milliseconds and 40 random bits, in base 32 (a shortened ULID)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def new(self, prefix: str) -> str:
        """A new identifier such as `sweep-01jd3k…`."""
        number = (self._clock.now_us() // 1_000 << 40) | secrets.randbits(40)
        letters = [_ALPHABET[number >> shift & 31] for shift in range(85, -1, -5)]
        return f"{prefix}-{''.join(letters)}"


class CountingIds:
    """Predictable identifiers for tests and simulations: `sweep-1`, `sweep-2`."""

    def __init__(self) -> None:
        self._next = 0

    def new(self, prefix: str) -> str:
        """The next number."""
        self._next += 1
        return f"{prefix}-{self._next}"
