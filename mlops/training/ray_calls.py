"""Calls on warm Ray actors, one at a time each: a call can be killed with its actor, and a fresh one takes its place.

Every actor keeps a state that is opened once, hides the project's keys, and ends itself when the paid time is over.
Leaves to others: Ray itself (ray_cluster.py), what is called and for how long (its callers), paying (mlops/budgets).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from mlops.clock import SECOND_US
from mlops.errors import EnvironmentFault
from mlops.processes import collect_less
from mlops.provenance.confinement import confine
from mlops.training.watchdog import Watchdog

START_SECONDS = 120.0
"""How long actors may take to be placed and to open their state."""
ASK_SECONDS = 0.05
"""Until a killed actor that may still live is asked again."""
DEATH_SECONDS = 30.0
"""How long a killed actor is waited for: on a busy machine one that was just starting takes its time."""


@dataclass(frozen=True)
class Lost:
    """The call ended without an answer: its actor died, or the call could not be sent."""

    why: str


@dataclass(frozen=True)
class CallSetup:
    """What every actor is started with."""

    open_state: Callable[[], Any]
    """Run once in each actor."""
    call: Callable[[Any, Any], Any]
    """Argument and state to the answer."""
    keys_folder: str
    cpus: float
    """Of each actor."""


class CallActor:
    """The process of one actor."""

    def __init__(self, setup: CallSetup, paid_us: int) -> None:
        confine(hidden=Path(setup.keys_folder))  # before any other thread of ours starts: those inherit it
        self._watchdog = Watchdog(_now_us() + paid_us)
        os.environ.update(ORT_DISABLE_TELEMETRY="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        collect_less()
        import torch  # after the environment is set

        torch.set_num_threads(1)
        self._setup = setup
        self._state: Any = None

    def open(self) -> int:
        """Open the state; gives this process's monotonic clock."""
        confine(hidden=Path(self._setup.keys_folder))  # Ray calls methods from threads of its own
        self._state = self._setup.open_state()
        return _now_us()

    def extend(self, until_us: int) -> None:
        """Move the deadline, on this process's clock."""
        self._watchdog.extend(until_us)

    def call(self, argument: Any) -> Any:
        """One call."""
        return self._setup.call(argument, self._state)


@dataclass
class _Actor:
    handle: Any
    opening: Any
    asked_us: int
    offset_us: int | None = None
    """Its clock minus ours, never too late; None until it is open."""
    name: str = ""
    """The call that it runs."""
    reference: Any = None


class RayCalls:
    """A few actors that take calls by name; Ray must be connected.

    Args:
        setup: What each actor is started with.
        size: How many.
        until_us: End of the paid time on this process's monotonic clock.
    """

    def __init__(self, setup: CallSetup, *, size: int, until_us: int) -> None:
        self._setup = setup
        self._until_us = until_us
        self._actors = [self._start() for _ in range(size)]

    def count_free(self) -> int:
        """How many actors are open and idle."""
        return sum(1 for actor in self._actors if actor.offset_us is not None and not actor.name)

    def begin(self, name: str, argument: Any) -> None:
        """Give a call to an idle actor."""
        actor = next(actor for actor in self._actors if actor.offset_us is not None and not actor.name)
        actor.name, actor.reference = name, actor.handle.call.remote(argument)

    def next_ended(self, *, timeout_seconds: float) -> list[tuple[str, Any]]:
        """Names and answers (or `Lost`) of calls that ended; waits for the first event.

        Raises:
            EnvironmentFault: Actors do not start, or cannot open their state.
        """
        waiting = {
            actor.reference if actor.name else actor.opening: actor
            for actor in self._actors
            if actor.name or actor.offset_us is None
        }
        if not waiting:
            time.sleep(timeout_seconds)
            return []
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout_seconds)
        ended = []
        for reference in done:
            actor = waiting[reference]
            if actor.name:
                ended.append((actor.name, self._take(actor)))
            else:
                self._opened(actor)
        self._look_for_late()
        return ended

    def stop(self, name: str) -> None:
        """Kill the actor of a call; a fresh one is started."""
        actor = next(actor for actor in self._actors if actor.name == name)
        self._replace(actor)

    def extend(self, until_us: int) -> None:
        """More time was paid."""
        self._until_us = until_us
        for actor in self._actors:
            if actor.offset_us is not None:
                actor.handle.extend.remote(until_us + actor.offset_us)

    def close(self) -> bool:
        """Kill all actors.

        Returns:
            Whether all are known to be dead, so that no later time of theirs need be paid.
        """
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):  # it may be dead already, which is what is wanted
                ray.kill(actor.handle, no_restart=True)
        return all(_is_dead(actor) for actor in actors)

    def _start(self) -> _Actor:
        kind = ray.remote(CallActor).options(num_cpus=self._setup.cpus, max_restarts=0, max_concurrency=2)
        asked_us = _now_us()
        handle = kind.remote(self._setup, self._until_us - asked_us)
        return _Actor(handle, handle.open.remote(), asked_us)

    def _opened(self, actor: _Actor) -> None:
        try:
            their_us = ray.get(actor.opening)
        except Exception as error:
            raise EnvironmentFault(
                f"a worker on Ray could not begin: {_first_line(error)}", hint="`mlops doctor` looks at this machine"
            ) from error
        actor.offset_us = their_us - _now_us()
        actor.handle.extend.remote(self._until_us + actor.offset_us)

    def _take(self, actor: _Actor) -> Any:
        try:
            answer = ray.get(actor.reference)
        except ray.exceptions.RayTaskError as error:
            answer = Lost(_first_line(error.cause))
        except Exception as error:
            self._replace(actor)
            return Lost(f"its worker died: {_first_line(error)}")
        actor.name, actor.reference = "", None
        return answer

    def _replace(self, actor: _Actor) -> None:
        with contextlib.suppress(Exception):
            ray.kill(actor.handle, no_restart=True)
        self._actors[self._actors.index(actor)] = self._start()

    def _look_for_late(self) -> None:
        late = [
            actor
            for actor in self._actors
            if actor.offset_us is None and _now_us() - actor.asked_us > START_SECONDS * SECOND_US
        ]
        if len(late) == len(self._actors):
            raise EnvironmentFault(
                f"no worker found a place on Ray within {START_SECONDS:g} s",
                hint="ask for fewer or smaller workers in the policy's `machines`, or add nodes",
            )


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _now_us() -> int:
    return time.monotonic_ns() // 1_000


def _is_dead(actor: _Actor) -> bool:
    limit = time.monotonic() + DEATH_SECONDS
    while (left := limit - time.monotonic()) > 0:
        try:
            ray.get(actor.handle.extend.remote(0), timeout=left)  # one that lives all the same ends by this
        except ray.exceptions.ActorUnavailableError:
            pass  # the connection broke, and Ray does not know yet why
        except ray.exceptions.RayActorError:
            return True
        except Exception:  # no answer in time, or no Ray: nobody knows
            return False
        time.sleep(ASK_SECONDS)  # or it answered before the order to end reached it
    return False
