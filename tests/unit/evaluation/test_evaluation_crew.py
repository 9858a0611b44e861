"""Checks run side by side: one that hangs is killed alone, a process that dies is a crash, a run that dies goes on."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from mlops.clock import FakeClock, SystemClock
from mlops.errors import Reason, Refusal
from mlops.evaluation.check_cache import CheckCache
from mlops.evaluation.check_crew import Heard, hear_checks
from mlops.evaluation.fork_crew import ForkCrew, call_apart
from mlops.evaluation.policy import AnyRule, Policy
from mlops.evaluation.rates import Evidence
from mlops.evaluation.verdicts import Claim, Findings
from mlops.specs import parse_spec

FOUND = Findings((Claim("all", "at least", 0.5, n=9, evidence=Evidence(0.6, 0.5, 0.7, 0.01, 1.0)),), {"x": [1.5, "a"]})


def rules(count: int, *, time_limit: str = "60s", minimum: float = 0.5) -> tuple[AnyRule, ...]:
    lines = "".join(
        f"  - {{name: c{index}, kind: accuracy, minimum: {minimum}, owner: me, reason: a reason of a sentence, "
        f"time_limit: {time_limit}}}\n"
        for index in range(count)
    )
    text = f"version: 1\nproduct: p\nfavourable_class: y\nchecks:\n{lines}"
    return parse_spec(text, Policy, source="policy").checks


class PlannedCrew:
    """A crew without processes: checks end when the plan says so, on the clock that `next_ended` moves."""

    def __init__(self, clock: FakeClock, seconds: dict[str, float], *, size: int, paid_seconds: float = 1e9) -> None:
        self.clock, self.seconds, self.size, self.paid_us = clock, seconds, size, paid_seconds * 1e6
        self.ends: dict[str, float] = {}
        self.begun: list[str] = []
        self.stopped: list[str] = []
        self.is_closed = False

    def count_free(self) -> int:
        return self.size - len(self.ends)

    def begin(self, rule: AnyRule) -> None:
        self.begun.append(rule.name)
        self.ends[rule.name] = self.clock.monotonic_us() + 1e6 * self.seconds[rule.name]

    def next_ended(self, *, timeout_seconds: float) -> list[tuple[str, Heard]]:
        self.clock.advance(timeout_seconds)
        ended = [name for name, end in self.ends.items() if end <= self.clock.monotonic_us()]
        for name in ended:
            del self.ends[name]
        return [(name, Heard(FOUND)) for name in ended]

    def stop(self, name: str) -> None:
        del self.ends[name]
        self.stopped.append(name)

    def look_at_lease(self) -> Refusal | None:
        is_over = self.clock.monotonic_us() > self.paid_us
        return Refusal((Reason("no-budget", "spent"),)) if is_over else None

    def close(self) -> None:
        self.is_closed = True


def test_a_check_over_its_limit_is_stopped_and_the_others_are_heard() -> None:
    clock = FakeClock()
    crew = PlannedCrew(clock, {"c0": 1e9, "c1": 2, "c2": 2}, size=2)
    heard = hear_checks(rules(3, time_limit="5s"), crew=crew, clock=clock)
    assert isinstance(heard, dict)
    assert [one.code for one in heard.values()] == ["time-out", "", ""]
    assert crew.stopped == ["c0"]
    assert crew.is_closed


def test_a_lease_that_ends_stops_all_and_what_was_heard_is_not_heard_again(tmp_path: Path) -> None:
    clock = FakeClock()
    known = CheckCache(tmp_path, inputs={"candidate": "sha256:1"})
    poor = PlannedCrew(clock, {f"c{index}": 1 for index in range(4)}, size=1, paid_seconds=2.4)
    assert isinstance(hear_checks(rules(4), crew=poor, clock=clock, known=known), Refusal)
    assert poor.is_closed
    rich = PlannedCrew(clock, {f"c{index}": 1 for index in range(4)}, size=1)
    heard = hear_checks(rules(4), crew=rich, clock=clock, known=known)
    assert isinstance(heard, dict)
    assert (poor.begun[:2], rich.begun) == (["c0", "c1"], ["c2", "c3"])
    assert heard["c0"].findings == FOUND


CHANGES = {
    "another model": ({"candidate": "sha256:2"}, 0.5, 1),
    "other code": ({"candidate": "sha256:1", "code": "sha256:9"}, 0.5, 1),
    "another threshold": ({"candidate": "sha256:1"}, 0.4, 1),
    "nothing": ({"candidate": "sha256:1"}, 0.5, 0),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_check_is_heard_again_when_something_changed(tmp_path: Path, changed: str) -> None:
    inputs, minimum, expected = CHANGES[changed]
    CheckCache(tmp_path, inputs={"candidate": "sha256:1"}).keep(rules(1)[0], Heard(FOUND))
    clock = FakeClock()
    crew = PlannedCrew(clock, {"c0": 1}, size=1)
    hear_checks(rules(1, minimum=minimum), crew=crew, clock=clock, known=CheckCache(tmp_path, inputs=inputs))
    assert len(crew.begun) == expected


def test_a_crash_is_not_kept(tmp_path: Path) -> None:
    def crash(rule: AnyRule) -> Findings:
        raise RuntimeError("boom")

    for _ in range(2):
        known = CheckCache(tmp_path, inputs={})
        heard = hear_checks(rules(1), crew=ForkCrew(crash, size=1), clock=SystemClock(), known=known)
        assert isinstance(heard, dict)
        assert heard["c0"].code == "crashed"
        assert "RuntimeError: boom" in heard["c0"].text
    assert not list(tmp_path.iterdir())


def test_processes_are_killed_at_the_limit_with_what_they_started_and_a_death_is_a_crash(tmp_path: Path) -> None:
    def hear(rule: AnyRule) -> Findings:
        if rule.name == "c0":
            child = os.fork()
            (tmp_path / ("parent" if child else "child")).write_text(str(os.getpid()))
            while True:
                time.sleep(0.1)
        if rule.name == "c1":
            os.kill(os.getpid(), signal.SIGKILL)
        return FOUND

    heard = hear_checks(rules(3, time_limit="1s"), crew=ForkCrew(hear, size=2), clock=SystemClock())
    assert isinstance(heard, dict)
    assert [one.code for one in heard.values()] == ["time-out", "crashed", ""]
    pids = [int((tmp_path / name).read_text()) for name in ("parent", "child")]
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
    assert not alive


def test_what_runs_apart_gives_its_value_or_nothing() -> None:
    assert call_apart(lambda: 7, time_limit=60) == 7
    assert call_apart(lambda: 1 / 0, time_limit=60) is None
    assert call_apart(lambda: time.sleep(60), time_limit=0.2) is None


def test_children_cannot_read_what_is_hidden(tmp_path: Path) -> None:
    from mlops.provenance.confinement import landlock_version

    if landlock_version() == 0:
        pytest.skip("needs Landlock in the kernel")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "machine.key").write_text("secret")

    def read() -> str:
        try:
            return (tmp_path / "keys" / "machine.key").read_text()
        except OSError as error:
            return type(error).__name__

    assert call_apart(read, time_limit=60, hidden=tmp_path / "keys") == "PermissionError"
