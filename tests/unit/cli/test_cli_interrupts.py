"""Ctrl-C: asked for once, wherever the command is."""

import signal
import threading

import pytest

from mlops.cli.interrupts import asking_first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_although_this_thread_holds_what_the_asking_waits_for(number):
    held, asked, said = threading.Lock(), threading.Event(), []
    before = signal.getsignal(number)  # ignored, where the tests run in the background of a shell

    def ask():
        with held:
            asked.set()

    with asking_first(ask, say=said.append, text="stopping"):
        with held:
            signal.raise_signal(number)
            assert not asked.is_set()
        assert asked.wait(10)
        assert said == ["stopping; interrupt again to end at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
