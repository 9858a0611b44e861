"""The gate tests itself: planted defects must be blocked for the right reason, an honest model must pass.

`mlops gate run --self-test` prints it. Leaves to others: the planted models (planted.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mlops.clock import Clock
from mlops.evaluation.gate import judge_hearing
from mlops.evaluation.planted import PLANTED, Planted, open_planted
from mlops.evaluation.policy import Policy
from mlops.evaluation.verdicts import GateResult
from mlops.specs import parse_spec

_POLICY = """
version: 1
product: planted
favourable_class: granted
checks:
  - {name: accuracy, kind: accuracy, minimum: 0.80, owner: gate, reason: the truth can be known to 88 percent}
  - {name: no-leak, kind: overlap, "on": subject, maximum: 0, owner: gate, reason: test people are not trained on}
  - {name: selection-by-sex, kind: selection-rate-gap, by: [sex], maximum: 0.1, owner: gate, reason: sex is no reason}
  - {name: odds-by-sex, kind: equalized-odds-gap, by: [sex], maximum: 0.1, owner: gate, reason: sex is no reason}
  - {name: more-hours, kind: monotone, column: hours, step: 1, maximum: 0.02, owner: gate, reason: hours are rewarded}
  - {name: backdoor, kind: backdoor, maximum: 0.40, owner: gate, reason: no pair of values may force an answer}
  - name: grounds
    kind: attribution
    proxies: [area]
    maximum_share: 0.2
    rows: 100
    draws: 8
    owner: gate
    reason: the area stands for sex and is no ground
  - name: membership
    kind: membership
    maximum_auc: 0.55
    maximum_tpr: 0.03
    rows: 6000
    owner: gate
    reason: nobody may be known to be in the data
  - name: evasion
    kind: evasion
    minimum: 0.75
    attacks: [pgd]
    rows: 1000
    changes: [{column: hours, up: 2, down: 2}, {column: sector, to: any}]
    owner: gate
    reason: hours and sector are stated freely
"""


@cache
def self_test_policy() -> Policy:
    """The policy that planted models are judged by."""
    return parse_spec(_POLICY, Policy, source="the gate's self-test")


@dataclass(frozen=True)
class SelfTestLine:
    """What the gate said about one planted model."""

    planted: Planted
    result: GateResult

    @property
    def is_right(self) -> bool:
        """Blocked by the expected check for the expected reason; or passed, if it is honest."""
        if not self.planted.expected_check:
            return self.result.is_go
        check = next(check for check in self.result.checks if check.name == self.planted.expected_check)
        return check.is_stopping and check.code in self.planted.expected_codes

    @property
    def said(self) -> str:
        """The stopping checks with their codes."""
        stopping = [f"{check.name} ({check.code})" for check in self.result.checks if check.is_stopping]
        return ", ".join(stopping) or "go"


def run_self_test(clock: Clock, *, seed: int = 0, planted: tuple[Planted, ...] = PLANTED) -> tuple[SelfTestLine, ...]:
    """Judge every planted model."""
    return tuple(SelfTestLine(one, _judge(one, clock, seed=seed)) for one in planted)


@dataclass(frozen=True)
class StabilityLine:
    """Whether something that must not matter moved anything in the gate's result."""

    changed: str
    first: str
    """Digest of the result before."""
    second: str

    @property
    def is_right(self) -> bool:
        """Nothing moved: not a verdict, not a digit."""
        return self.first == self.second


def run_stability_test(clock: Clock, *, seed: int = 0, planted: Planted = PLANTED[0]) -> tuple[StabilityLine, ...]:
    """Judge one model again as it was, with its rows in other orders, and with other numbers of workers."""
    first = _judge(planted, clock, seed=seed).digest
    again = {
        "the same model a second time": _judge(planted, clock, seed=seed),
        "the rows in another order": _judge(planted, clock, seed=seed, shuffled_by=seed + 1),
        "one worker": _judge(planted, clock, seed=seed, checks_at_once=1),
        "five workers": _judge(planted, clock, seed=seed, checks_at_once=5),
    }
    return tuple(StabilityLine(changed, first, result.digest) for changed, result in again.items())


def _judge(
    planted: Planted, clock: Clock, *, seed: int, shuffled_by: int | None = None, checks_at_once: int = 0
) -> GateResult:
    hearing = open_planted(planted, policy=self_test_policy(), seed=seed, shuffled_by=shuffled_by)
    result = judge_hearing(hearing, candidate=planted.name, clock=clock, inputs={}, checks_at_once=checks_at_once)
    assert isinstance(result, GateResult), "processes of this machine need no lease"
    return result
