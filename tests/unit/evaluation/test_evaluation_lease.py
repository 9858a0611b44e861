"""The gate's machines are paid ahead, renewed at half time and settled; without budget nothing starts."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from mlops.budgets.lease_types import Lease, LeaseRequest, Settlement
from mlops.clock import FakeClock
from mlops.errors import ProjectError, Reason, Refusal
from mlops.evaluation.leased_crew import reserve_time
from mlops.evaluation.policy import Machines, Policy
from mlops.ids import CountingIds
from mlops.specs import parse_spec
from mlops.units import Accelerators

MACHINES = Machines(budget="research", workers=3, accelerators=Accelerators("cpu", 0.5), window="60s")
NO = Refusal((Reason("no-budget", "spent"),))


@dataclass
class Leases:
    """A lease book that grants or refuses."""

    grants: int
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def _answer(self, name: str, detail: Any) -> Lease | Refusal:
        self.calls.append((name, detail))
        self.grants -= 1
        size = Accelerators("cpu", 1.5)
        lease = Lease("lease-1", 7, "research", size, "h", "", "training", 0, 0, 0, 1, 1, 0)
        return lease if self.grants >= 0 else NO

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        return self._answer("reserve", request)

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        return self._answer("renew", (lease_id, fencing_token, window_seconds, key))

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        self.calls.append(("settle", (lease_id, fencing_token, ended_us)))
        return Settlement(lease_id, 0, 0, 0, "settled")


def test_one_lease_pays_for_all_workers_and_is_renewed_at_half_time_until_the_budget_says_no() -> None:
    clock, leases = FakeClock(), Leases(grants=2)
    paid = reserve_time(leases, MACHINES, budget="research", clock=clock, ids=CountingIds(), spender="ada")
    assert not isinstance(paid, Refusal)
    request = leases.calls[0][1]
    assert (request.budget, request.accelerators, request.spender) == ("research", Accelerators("cpu", 1.5), "ada")
    clock.advance(29)
    assert paid.renew_if_due() is None
    clock.advance(2)
    assert paid.renew_if_due() == (31 + 60) * 1_000_000
    clock.advance(31)
    assert paid.renew_if_due() == NO
    paid.ended_us = 42
    paid.settle()
    assert leases.calls[-1][1] == ("lease-1", 7, 42)  # not to the end of the window
    assert [name for name, _ in leases.calls] == ["reserve", "renew", "renew", "settle"]


def test_without_budget_nothing_starts() -> None:
    assert (
        reserve_time(Leases(grants=0), MACHINES, budget="research", clock=FakeClock(), ids=CountingIds(), spender="ada")
        == NO
    )


def test_the_policys_meaning_does_not_hang_on_its_machines_and_only_cpu_is_taken() -> None:
    text = "version: 1\nproduct: p\nfavourable_class: y\n"
    plain = parse_spec(text, Policy, source="policy")
    for machines in ("{budget: research}", "{workers: 4}"):
        assert parse_spec(text + f"machines: {machines}\n", Policy, source="policy").digest == plain.digest
    with pytest.raises(ProjectError):
        parse_spec(text + "machines: {budget: research, accelerators: 1xh100}\n", Policy, source="policy")
