"""Money, whatever happens: random operations, repeats, crashes, cuts and clock jumps (invariants 1-4 and 14)."""

import os
from collections import defaultdict
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlops.budgets.configuration import apply_budgets, set_budget
from mlops.budgets.leases import Lease, LeaseBook, LeaseRequest, SpendLimit
from mlops.budgets.replay import find_differences, load_tables
from mlops.budgets.sql_budgets import warnings
from mlops.budgets.tree import BudgetNode, BudgetTree, RateCard, RateVersion, Threshold
from mlops.clock import SECOND_US, FakeClock
from mlops.errors import Refusal
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger
from mlops.units import Accelerators

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
RATES = RateCard((RateVersion(0, {"h100": 3_600_000}),))
CAPS = {"company": 3_000_000, "team": 1_500_000, "other": 2_000_000}


class LeaseMachine(RuleBasedStateMachine):
    """Drivers reserve, renew, settle or vanish; their workers burn until the end of their window on their own clock."""

    @initialize()
    def begin(self):
        self.clock = FakeClock()
        self.ledger = open_ledger("sqlite://", self.clock)
        half = (Threshold(5_000, "warn"), Threshold(9_000, "warn"))
        nodes = [
            BudgetNode("company", cap_micro_usd=CAPS["company"], thresholds=half, period="once"),
            BudgetNode("team", parent="company", cap_micro_usd=CAPS["team"], thresholds=half, period="once"),
            BudgetNode("other", parent="company", cap_micro_usd=CAPS["other"], period="once"),
        ]
        self.tree = BudgetTree.of(nodes, rates=RATES)
        apply_budgets(self.ledger, self.tree, who="test")
        self.book = LeaseBook(self.ledger, self.clock, CountingIds())
        self.caps = dict(CAPS)
        self.was_over = {}
        self.held: dict[str, Lease] = {}
        self.stops_at: dict[str, int] = {}
        """Lease to the workers' own time at which they stop."""
        self.burned = defaultdict(int)
        self.done = []
        self.count = 0

    def _key(self):
        self.count += 1
        return f"key-{self.count}"

    @rule(
        budget=st.sampled_from(["team", "other"]),
        units=st.integers(1, 4),
        window=st.integers(1, 120),
        limited=st.booleans(),
    )
    def reserve(self, budget, units, window, limited):
        limits = (SpendLimit("sweep:1", 400_000),) if limited else ()
        request = LeaseRequest(
            key=self._key(), budget=budget, accelerators=Accelerators("h100", units), window_seconds=window,
            grace_seconds=2, checkpoint_seconds=3, holder="driver", limits=limits,
        )  # fmt: skip
        asked_us = self.clock.monotonic_us()
        lease = self.book.reserve(request)
        self.done.append(lambda: self.book.reserve(request))
        if isinstance(lease, Lease):
            self.held[lease.lease_id] = lease
            self.stops_at[lease.lease_id] = asked_us + (window + 5) * SECOND_US

    @precondition(lambda self: self.held)
    @rule(data=st.data(), window=st.integers(1, 120))
    def renew(self, data, window):
        lease = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        key, asked_us = self._key(), self.clock.monotonic_us()
        arguments = {"fencing_token": lease.fencing_token, "window_seconds": window, "key": key}
        renewed = self.book.renew(lease.lease_id, **arguments)
        self.done.append(lambda: self.book.renew(lease.lease_id, **arguments))
        if isinstance(renewed, Lease) and asked_us < self.stops_at[lease.lease_id]:
            self.stops_at[lease.lease_id] = asked_us + (window + 5) * SECOND_US

    @precondition(lambda self: self.held)
    @rule(data=st.data(), is_known=st.booleans())
    def settle(self, data, is_known):
        lease = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.stops_at[lease.lease_id] = min(self.stops_at[lease.lease_id], self.clock.monotonic_us())
        arguments = {"fencing_token": lease.fencing_token, "ended_us": self.clock.now_us() if is_known else None}
        key = self._key()
        self.book.settle(lease.lease_id, key=key, **arguments)
        self.done.append(lambda: self.book.settle(lease.lease_id, key=key, **arguments))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def driver_vanishes(self, data):
        self.held.pop(data.draw(st.sampled_from(sorted(self.held))))

    @rule(seconds=st.integers(1, 200))
    def time_passes(self, seconds):
        before = self.clock.monotonic_us()
        self.clock.advance(seconds)
        with self.ledger.read() as connection:
            leases = load_tables(connection).leases
        for lease_id, stops_us in self.stops_at.items():
            ran_us = max(min(stops_us, self.clock.monotonic_us()) - before, 0)
            price = leases[lease_id]["price_micro_usd_per_hour"]
            for scope, _, _ in leases[lease_id]["scopes"]:
                self.burned[scope] += price * ran_us / 3_600_000_000

    @rule(seconds=st.integers(1, 10_000))
    def clock_jumps_ahead(self, seconds):
        self.clock.jump(seconds)

    @rule()
    def sweeper_runs(self):
        self.book.close_expired()

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def a_message_comes_twice(self, data):
        before = self._accounts()
        answer = data.draw(st.sampled_from(self.done))()
        if not isinstance(answer, Refusal) or answer.reasons[0].code not in {"lease-ended", "lease-expired", "fenced"}:
            assert self._accounts() == before

    @rule(name=st.sampled_from(sorted(CAPS)), cap=st.integers(0, 4_000_000))
    def cap_changes(self, name, cap):
        set_budget(self.ledger, replace(self.tree.by_name[name], cap_micro_usd=cap), who="boss", why="test")
        self.caps[name] = cap
        self.was_over = self._over()

    def _accounts(self):
        with self.ledger.read() as connection:
            return load_tables(connection).accounts

    def _over(self):
        held = {scope.removeprefix("budget:"): b[0] + b[1] for (scope, _), b in self._accounts().items()}
        return {name: used for name, used in held.items() if name in self.caps and used > self.caps[name]}

    @invariant()
    def never_above_the_cap_or_falling_after_a_cut(self):
        if not hasattr(self, "caps"):
            return
        over = self._over()
        for name, used in over.items():
            assert name in self.was_over and used <= self.was_over[name], (name, used, self.caps[name])
        self.was_over = over
        limit = next((b for (scope, _), b in self._accounts().items() if scope == "sweep:1"), (0, 0))
        assert limit[0] + limit[1] <= 400_000

    @invariant()
    def workers_never_burn_more_than_was_paid(self):
        if not hasattr(self, "caps"):
            return
        held = {scope: balances for (scope, _), balances in self._accounts().items()}
        for scope, burned in self.burned.items():
            assert burned <= held[scope][0] + held[scope][1] + 1e-6, scope

    @invariant()
    def tables_follow_from_events_and_add_up(self):
        if not hasattr(self, "caps"):
            return
        with self.ledger.read() as connection:
            assert find_differences(connection) == ()
            rows = connection.execute(warnings.select()).all()
        assert len({(row.scope, row.basis_points) for row in rows}) == len(rows)

    @invariant()
    def a_parent_is_the_sum_of_its_children(self):
        if not hasattr(self, "caps"):
            return
        held = {scope: balances for (scope, _), balances in self._accounts().items()}
        for part in (0, 1):
            below = sum(held.get(f"budget:{name}", (0, 0))[part] for name in ("team", "other"))
            assert held.get("budget:company", (0, 0))[part] == below

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()


TestLeases = LeaseMachine.TestCase
TestLeases.settings = settings(
    max_examples=10 * SCALE, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
