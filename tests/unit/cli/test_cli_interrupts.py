"""Ctrl-C: asked for once, wherever the command is."""

import signal
import threading

import pytest

from mlops.cli.interrupts import asking_first


def test_the_first_interrupt_asks_although_this_thread_holds_what_the_asking_waits_for():
    held, asked, said = threading.Lock(), threading.Event(), []
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell

    def ask():
        with held:
            asked.set()

    with asking_first(ask, say=said.append, text="stopping"):
        with held:
            signal.raise_signal(signal.SIGINT)
            assert not asked.is_set()
        assert asked.wait(10)
        assert said == ["stopping; interrupt again to end at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
