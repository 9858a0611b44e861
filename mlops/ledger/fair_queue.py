"""First come, first served in front of SQLite's write lock, which by itself lets waiters starve.

A ticket per waiter from a small file beside the database; the holder of ticket n keeps a lock on slot n, and the next
one waits for that lock. The kernel gives the locks of a killed process back, so nobody waits for the dead. The queue
only orders: exclusion is still the database's own lock.
Leaves to others: the transaction itself (`connection`). Where the kernel has no open-file-description locks (not Linux)
nothing is ordered.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SLOTS = 65_536
_SLOT_OFFSET = 4_096
_COUNTERS = struct.Struct("=qq")
"""Last ticket given out, ticket being served."""
_FLOCK = "hhqqi4x"
_SHORTEST_PAUSE_S, _PAUSE_PER_WAITER_S, _LONGEST_PAUSE_S = 0.0003, 0.002, 0.02
IS_SUPPORTED = hasattr(fcntl, "F_OFD_SETLK")


@contextmanager
def wait_turn(path: Path, *, timeout_seconds: float) -> Iterator[bool]:
    """Hold the turn; yields False when the one ahead did not finish in time (the caller then meets its lock).

    Args:
        path: The queue's file; made when absent.
        timeout_seconds: How long to wait at most.
    """
    if not IS_SUPPORTED:
        yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        ticket = _take_ticket(descriptor)
        is_mine = _wait_for(descriptor, ticket, until=time.monotonic() + timeout_seconds)
        _write_served(descriptor, ticket)
        yield is_mine
    finally:
        os.close(descriptor)  # gives back every lock of this description


def _take_ticket(descriptor: int) -> int:
    _lock(descriptor, 0, wait=True)
    last, served = _read_counters(descriptor)
    ticket = last + 1
    _lock(descriptor, _slot(ticket), wait=False)
    os.pwrite(descriptor, _COUNTERS.pack(ticket, served)[:8], 0)
    _unlock(descriptor, 0)
    return ticket


def _wait_for(descriptor: int, ticket: int, *, until: float) -> bool:
    ahead = _slot(ticket - 1)
    while not _lock(descriptor, ahead, wait=False):
        if time.monotonic() > until:
            return False
        distance = ticket - _read_counters(descriptor)[1] - 1
        time.sleep(min(_SHORTEST_PAUSE_S + max(distance - 1, 0) * _PAUSE_PER_WAITER_S, _LONGEST_PAUSE_S))
    _unlock(descriptor, ahead)
    return True


def _write_served(descriptor: int, ticket: int) -> None:
    os.pwrite(descriptor, _COUNTERS.pack(0, ticket)[8:], 8)


def _read_counters(descriptor: int) -> tuple[int, int]:
    raw = os.pread(descriptor, _COUNTERS.size, 0)
    last, served = _COUNTERS.unpack(raw.ljust(_COUNTERS.size, b"\0"))
    return last, served


def _slot(ticket: int) -> int:
    return _SLOT_OFFSET + ticket % _SLOTS


def _lock(descriptor: int, offset: int, *, wait: bool) -> bool:
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(descriptor: int, offset: int) -> None:
    request = struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
