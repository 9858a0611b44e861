"""Hearing checks side by side: each within its time limit, known results taken from the cache, no check hurts another.

A crew is the place where checks run: processes of this machine (fork_crew.py) or actors on Ray (leased_crew.py).
Leaves to others: what a check measures (checks/), verdicts (decisions.py), what the cache's keys stand for (gate.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mlops.clock import SECOND_US, Clock
from mlops.errors import Refusal
from mlops.evaluation.policy import AnyRule
from mlops.evaluation.verdicts import Findings, NotEvaluableError

LOOK_SECONDS = 0.5
"""How often limits and leases are looked at while all checks are busy."""
UNFINISHED_CODES = frozenset({"crashed", "time-out", "attack-crashed", "model-crashed", "module-crashed"})
"""Ends that say nothing about the model, so they are never kept: the next run tries again."""


@dataclass(frozen=True)
class Heard:
    """What came of one check before any decision."""

    findings: Findings
    code: str = ""
    text: str = ""
    seconds: float = 0.0


class CheckCrew(Protocol):
    """Where checks run."""

    def count_free(self) -> int:
        """How many further checks can begin now."""
        ...

    def begin(self, rule: AnyRule) -> None:
        """Start one check."""
        ...

    def next_ended(self, *, timeout_seconds: float) -> list[tuple[str, Heard]]:
        """Names and findings of checks that ended; waits for the first one. A worker that died counts as crashed."""
        ...

    def stop(self, name: str) -> None:
        """End a check at once, whatever it does; it is not reported as ended."""
        ...

    def look_at_lease(self) -> Refusal | None:
        """Pay on where that is needed; a refusal when there is no more to spend, and all work must end."""
        ...

    def close(self) -> None:
        """End everything that still runs."""
        ...


class KnownChecks(Protocol):
    """Findings of earlier runs (`check_cache.py` has them)."""

    def find(self, rule: AnyRule) -> Heard | None:
        """What the same check of the same model on the same rows by the same code gave."""
        ...

    def keep(self, rule: AnyRule, heard: Heard) -> None:
        """Keep it at once, so that a run that dies loses only what was running."""
        ...


class NothingKnown:
    """No cache: every check is heard."""

    def find(self, rule: AnyRule) -> Heard | None:
        """Nothing."""
        return None

    def keep(self, rule: AnyRule, heard: Heard) -> None:
        """Nothing."""


def hear_one(rule: AnyRule, hear: Callable[[AnyRule], Findings]) -> Heard:
    """Run one check where this is called; whatever it raises becomes a code."""
    try:
        return Heard(hear(rule))
    except NotEvaluableError as error:
        return Heard(Findings(()), error.code, error.text)
    except Exception as error:
        return crashed(f"{type(error).__name__}: {error}")


def crashed(why: str) -> Heard:
    """The end of a check that broke."""
    return Heard(Findings(()), "crashed", f"the check crashed: {why}")


def hear_checks(
    rules: Sequence[AnyRule],
    *,
    crew: CheckCrew,
    clock: Clock,
    known: KnownChecks | None = None,
    on_finished: Callable[[str, float], None] = lambda name, seconds: None,
) -> dict[str, Heard] | Refusal:
    """Hear all checks; the refusal is that of the lease. What was heard before it is kept, so the next run goes on."""
    known = known or NothingKnown()
    heard = {rule.name: found for rule in rules if (found := known.find(rule)) is not None}
    waiting = deque(rule for rule in rules if rule.name not in heard)
    running: dict[str, tuple[AnyRule, int]] = {}

    def end(name: str, outcome: Heard) -> None:
        rule, began_us = running.pop(name)
        heard[name] = replace(outcome, seconds=(clock.monotonic_us() - began_us) / SECOND_US)
        if outcome.code not in UNFINISHED_CODES:
            known.keep(rule, heard[name])
        on_finished(name, heard[name].seconds)

    try:
        while waiting or running:
            while waiting and crew.count_free() > 0:
                rule = waiting.popleft()
                running[rule.name] = (rule, clock.monotonic_us())
                crew.begin(rule)
            for name, outcome in crew.next_ended(timeout_seconds=LOOK_SECONDS):
                end(name, outcome)
            for name, (rule, began_us) in list(running.items()):
                if clock.monotonic_us() - began_us > rule.time_limit * SECOND_US:
                    crew.stop(name)
                    end(name, Heard(Findings(()), "time-out", f"stopped after its limit of {rule.time_limit:g} s"))
            refusal = crew.look_at_lease()
            if refusal is not None:
                return refusal
    finally:
        crew.close()
    return {rule.name: heard[rule.name] for rule in rules}
