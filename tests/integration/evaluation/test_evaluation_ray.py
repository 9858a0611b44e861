"""Checks on real Ray: one that hangs dies with its actor, the next goes on; verdicts are those of processes."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.errors import Refusal
from mlops.evaluation import planted
from mlops.evaluation.check_crew import Heard, hear_checks, hear_one
from mlops.evaluation.fork_crew import ForkCrew
from mlops.evaluation.gate import hear_rule
from mlops.evaluation.hearing import Hearing
from mlops.evaluation.leased_crew import LeasedCrew
from mlops.evaluation.policy import AnyRule, Policy
from mlops.places import Places
from mlops.specs import parse_spec
from mlops.training.ray_cluster import connected, stop_local

pytestmark = pytest.mark.timeout(900)
POLICY = """
version: 1
product: planted
favourable_class: granted
checks:
  - {name: hangs, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence, time_limit: 2s}
  - {name: dies, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence}
  - {name: right, kind: accuracy, minimum: 0.5, owner: me, reason: a reason of a sentence}
  - {name: gap, kind: equalized-odds-gap, by: [sex], maximum: 0.2, owner: me, reason: a reason of a sentence}
"""


class Paid:
    """A lease that was paid for long enough."""

    def renew_if_due(self) -> int | Refusal | None:
        return None


def open_hearing() -> Hearing:
    policy = parse_spec(POLICY, Policy, source="policy")
    return planted.open_planted(planted.PLANTED[0], policy=policy, test_rows=600, train_rows=300)


def call(rule: AnyRule, hearing: Hearing) -> Heard:
    if rule.name == "hangs":
        time.sleep(3600)
    if rule.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return hear_one(rule, partial(hear_rule, hearing=hearing))


def test_ray_and_processes_say_the_same_and_no_check_hurts_another(tmp_path: Path) -> None:
    places, hearing, ended = Places(tmp_path), open_hearing(), []
    rules = hearing.policy.checks
    local = hear_checks(rules[2:], crew=ForkCrew(partial(hear_rule, hearing=hearing), size=2), clock=SystemClock())
    assert isinstance(local, dict)
    try:
        with ExitStack() as stack:
            stack.enter_context(connected(places, cpus=2))
            import cloudpickle

            from mlops.training.ray_calls import CallSetup, RayCalls

            cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
            setup = CallSetup(open_hearing, call, str(places.keys_folder), cpus=0.5)
            calls = RayCalls(setup, size=2, until_us=SystemClock().monotonic_us() + 900_000_000)
            stack.callback(lambda: ended.append(calls.close()))
            crew = LeasedCrew(calls, lease=Paid(), resources=stack.pop_all())  # type: ignore[arg-type]
            heard = hear_checks(rules, crew=crew, clock=SystemClock())
    finally:
        stop_local(places)
    assert ended == [True]  # all actors are known to be dead: no later time of theirs is paid
    assert isinstance(heard, dict)
    assert [one.code for one in heard.values()] == ["time-out", "crashed", "", ""]
    assert {name: heard[name].findings for name in local} == {name: one.findings for name, one in local.items()}
