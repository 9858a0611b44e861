"""Ctrl-C, or SIGTERM, to a command that can stop well: the first one asks for it, the second one ends at once.

Leaves to others: what stopping is (its callers).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mlops.errors import MlopsError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asking_first(ask: Callable[[], None], *, say: Callable[[str], None], text: str) -> Iterator[None]:
    """While the block runs, the first interrupt says `text` and calls `ask` in a thread of its own.

    Not in the handler: that interrupts this thread anywhere, also where it holds what `ask` waits for, such as the
    ledger's write lock.
    """

    def ask_quietly() -> None:
        with suppress(MlopsError):  # the ledger is lost: the second interrupt is left
            ask()

    def on_interrupt(_number: int, _frame: object) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler)
        say(f"{text}; interrupt again to end at once")
        threading.Thread(target=ask_quietly, name="interrupt").start()

    previous = {number: signal.signal(number, on_interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's
