"""One trial run again: paid, followed to its end, and always cleaned up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops.budgets.lease_types import Lease, LeaseRequest, Settlement
from mlops.clock import FakeClock
from mlops.errors import Reason, Refusal, TrainingError
from mlops.training.attempt import Answer, AttemptTask, Ended, Event, Gone, GroupShape, Ready, Reported, Usage
from mlops.training.one_trial import TrialRequest, run_one_trial
from mlops.training.spec import SweepSpec
from mlops.units import Accelerators

SPEC = SweepSpec.model_validate(
    {
        "version": 1,
        "product": "income",
        "dataset": "income",
        "budget": "research",
        "objective": {"metric": "loss"},
        "space": {"lr": {"low": 0.1, "high": 1.0}},
        "trials": 9,
        "epochs": 2,
        "workers": 2,
        "lease_window": "60s",
    }
)


class FakeLeases:
    """Grants, renews and settles; or refuses."""

    def __init__(self, clock: FakeClock, *, is_poor: bool = False) -> None:
        self.clock, self.is_poor, self.calls = clock, is_poor, list[str]()

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        self.calls.append("reserve")
        if self.is_poor:
            return Refusal((Reason("cap-exceeded", "no money"),))
        return self._lease(request.accelerators)

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        self.calls.append("renew")
        return self._lease(SPEC.accelerators)

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        self.calls.append("settle")
        return Refusal(())

    def _lease(self, accelerators: Accelerators) -> Lease:
        values: dict[str, Any] = dict.fromkeys(Lease.__dataclass_fields__, 0)
        return Lease(**{**values, "lease_id": "lease-1", "fencing_token": 1, "accelerators": accelerators})


class FakeCrew:
    """Plays a script of events, each batch after 40 seconds."""

    runs_ahead = False

    def __init__(self, clock: FakeClock, script: list[list[Event]]) -> None:
        self.clock, self.script, self.calls, self.task = clock, script, list[str](), None

    def start_group(self, name: str, *, shape: GroupShape, until_us: int, start_deadline_seconds: float) -> None:
        self.calls.append(f"start {shape.workers}")

    def extend(self, name: str, *, until_us: int) -> None:
        self.calls.append("extend")

    def begin(self, name: str, task: AttemptTask) -> None:
        self.calls.append("begin")
        self.task = task  # type: ignore[assignment]

    def answer(self, name: str, answer: Answer) -> None:
        self.calls.append(answer.name)

    def likeness(self, shape: Any) -> str:
        return ""

    def adopt_group(self, name: str, *, shape: Any, until_us: int) -> bool:
        return False

    def keep_group(self, name: str, *, until_us: int) -> bool:
        return False

    def end_left_over(self, names: Any) -> None:
        pass

    def ask_yield(self, name: str) -> None:
        pass

    def stop_group(self, name: str) -> None:
        self.calls.append("stop")

    def next_events(self, *, timeout_seconds: float) -> list[Event]:
        self.clock.advance(40)
        return self.script.pop(0)

    def close(self) -> None:
        self.calls.append("close")


GROUP = "rebuild-1-group"
READY = Ready(GROUP, "cpu", start_us=1)
REPORT = Reported(GROUP, 4, 0, 0, {"loss": 1.0})


def ended(outcome: str) -> Ended:
    return Ended(GROUP, 4, 0, outcome, Usage(1, 1), weights_file="/w/weights.safetensors", reason="because")


@pytest.fixture
def request_(tmp_path: Path) -> TrialRequest:
    trainer = tmp_path / "income.py"
    trainer.write_text("")
    return TrialRequest(
        "rebuild-1", SPEC, trainer, 4, {"lr": 0.2}, {"columns": {"age": 0}, "classes": 2}, 7, tmp_path / "trial"
    )


def test_a_trial_is_paid_followed_renewed_and_settled(request_: TrialRequest) -> None:
    clock = FakeClock()
    crew, leases = FakeCrew(clock, [[READY], [REPORT], [ended("complete")]]), FakeLeases(clock)
    weights = run_one_trial(request_, crew=crew, leases=leases, clock=clock, say=lambda line: None)
    assert weights == Path("/w/weights.safetensors")
    assert crew.calls == ["start 2", "extend", "begin", "extend", "CONTINUE", "extend", "stop"]
    assert leases.calls == ["reserve", "renew", "renew", "settle"]
    task: Any = crew.task
    assert (task.seed, task.trial, task.epochs, task.params) == (
        7,
        4,
        2,
        {"lr": 0.2, "columns": {"age": 0}, "classes": 2},
    )


def test_without_money_nothing_starts(request_: TrialRequest) -> None:
    clock = FakeClock()
    crew = FakeCrew(clock, [])
    outcome = run_one_trial(
        request_, crew=crew, leases=FakeLeases(clock, is_poor=True), clock=clock, say=lambda line: None
    )
    assert isinstance(outcome, Refusal)
    assert crew.calls == []


@pytest.mark.parametrize(
    ("event", "words"), [(Gone(GROUP, "killed"), "was lost: killed"), (ended("failed"), "ended as failed: because")]
)
def test_a_lost_group_is_stopped_and_its_lease_settled(request_: TrialRequest, event: Event, words: str) -> None:
    clock = FakeClock()
    crew, leases = FakeCrew(clock, [[READY], [event]]), FakeLeases(clock)
    with pytest.raises(TrainingError, match=words):
        run_one_trial(request_, crew=crew, leases=leases, clock=clock, say=lambda line: None)
    assert crew.calls[-1] == "stop"
    assert leases.calls[-1] == "settle"
