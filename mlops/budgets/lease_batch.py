"""Many leases in one transaction: the same grants and charges as one by one, with a handful of statements for all.

For whoever decides about many groups at once (admission, replays). Leaves to others: single leases (`leases`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlops.budgets import lease_rows
from mlops.budgets.accounts import (
    Account,
    ScopeKey,
    create_missing,
    find_shortages,
    list_scopes,
    load_accounts,
    post_many,
    warn_crossed,
)
from mlops.budgets.configuration import load_applied
from mlops.budgets.lease_rows import LeaseRow, request_digest
from mlops.budgets.lease_rules import check_policy, check_request, close_row, make_row, refuse_reused
from mlops.budgets.lease_types import Lease, LeaseRequest, Settlement, SpendLimit
from mlops.budgets.money import cost_of, price_per_hour
from mlops.budgets.quota import QuotaBoard
from mlops.budgets.tree import BudgetTree
from mlops.errors import Reason, Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Transaction


@dataclass
class LeaseBatch:
    """Collects operations; `flush` writes them."""

    transaction: Transaction
    ids: Ids
    accounts: dict[ScopeKey, Account] = field(default_factory=dict)
    scopes: dict[tuple[str, tuple[SpendLimit, ...]], tuple[Account, ...]] = field(default_factory=dict)
    boards: dict[str, QuotaBoard] = field(default_factory=dict)
    posts: dict[ScopeKey, tuple[int, int]] = field(default_factory=dict)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    granted: list[LeaseRow] = field(default_factory=list)
    closed: list[LeaseRow] = field(default_factory=list)
    done: list[tuple[str, str, str, Lease | Settlement]] = field(default_factory=list)

    def reserve(self, requests: Sequence[LeaseRequest]) -> list[Lease | Refusal]:
        """Grant each request in turn; a refused one does not hinder the next."""
        tree = load_applied(self.transaction.connection)
        earlier = lease_rows.find_operations(self.transaction.connection, [request.key for request in requests])
        self._load_accounts(tree, requests)
        answers: list[Lease | Refusal] = []
        for request in requests:
            digest = request_digest("reserve", request)
            known = earlier.get(request.key)
            if known is not None:
                answers.append(known.to_lease() if known.digest == digest else refuse_reused(request.key))
            else:
                answers.append(self._reserve(tree, request, digest=digest))
        return answers

    def _load_accounts(self, tree: BudgetTree, requests: Sequence[LeaseRequest]) -> None:
        wanted: dict[ScopeKey, Account] = {}
        for request in requests:
            for account in self._list_scopes(tree, request):
                wanted.setdefault(account.key, account)
        for account in load_accounts(self.transaction.connection, list(wanted.values())):
            self.accounts[account.key] = account

    def _list_scopes(self, tree: BudgetTree, request: LeaseRequest) -> tuple[Account, ...]:
        """Who pays; the same for every request with the same budget and limits."""
        known = self.scopes.get((request.budget, request.limits))
        if known is None:
            known = list_scopes(tree.path(request.budget), request.limits, now_us=self.transaction.now_us)
            self.scopes[request.budget, request.limits] = known
        return known

    def _reserve(self, tree: BudgetTree, request: LeaseRequest, *, digest: str) -> Lease | Refusal:
        now_us = self.transaction.now_us
        grounds = check_request(request, tree, now_us=now_us)
        if grounds:
            return Refusal(grounds)
        rate = tree.rates.find_price(request.accelerators.kind, at_us=now_us) or 0
        price = price_per_hour(rate, milli=request.milli)
        cost = cost_of(price, duration_us=request.prepaid_us)
        loaded = [self._balance(scope) for scope in self._list_scopes(tree, request)]
        quota = self._check_quota(tree, request, loaded)
        grounds = (*check_policy(loaded, request.purpose), *quota, *find_shortages(loaded, amount=cost))
        if grounds:
            return Refusal(grounds)
        if any(account.find_actions(added=cost) for account in loaded):
            self._flush_events()  # a warning is an event of its own, and takes the next number
            warn_crossed(self.transaction, loaded, added=cost)
        row = make_row(request, self.ids.new("lease"), now_us=now_us, price=price, cost=cost, scopes=loaded)
        row = replace(row, fencing_token=self.transaction.next_number + len(self.events))
        body = {"key": request.key, "digest": digest, "lease": row.to_json()}
        self.events.append(("lease.reserved", row.lease_id, body))
        for account in loaded:
            self.accounts[account.key] = replace(account, reserved_micro_usd=account.reserved_micro_usd + cost)
            self._post(account.key, reserved=cost)
        if request.accelerators.kind in self.boards:
            self.boards[request.accelerators.kind].use(request.budget, request.accelerators.kind, request.milli)
        self.granted.append(row)
        self.done.append((request.key, "reserve", digest, row.to_lease()))
        return row.to_lease()

    def _balance(self, scope: Account) -> Account:
        """The scope's account as it stands in this batch, under the cap that this request names."""
        account = self.accounts[scope.key]
        if account.cap_micro_usd == scope.cap_micro_usd:
            return account
        return replace(account, cap_micro_usd=scope.cap_micro_usd)

    def _check_quota(self, tree: BudgetTree, request: LeaseRequest, loaded: Sequence[Account]) -> tuple[Reason, ...]:
        kind = request.accelerators.kind
        if kind not in self.boards:
            board = QuotaBoard.of(tree).copy()
            for budget, units in lease_rows.sum_live(self.transaction.connection, kind):
                if budget in tree.by_name:
                    board.use(budget, kind, units)
            self.boards[kind] = board
        may_borrow = not any("stop-borrowing" in account.find_actions() for account in loaded)
        limit = self.boards[kind].find_limit(request.budget, kind, request.milli, may_borrow=may_borrow)
        return (Reason("quota-exceeded", limit.render_text()),) if limit else ()

    def settle(self, ended: Sequence[tuple[Lease, int]]) -> list[Settlement | Refusal]:
        """Charge each live lease up to its end; the key follows from the lease."""
        keys = [f"settle:{lease.lease_id}" for lease, _ in ended]
        earlier = lease_rows.find_operations(self.transaction.connection, keys)
        rows = lease_rows.find_many(self.transaction.connection, [lease.lease_id for lease, _ in ended])
        answers: list[Settlement | Refusal] = []
        for (lease, ended_us), key in zip(ended, keys, strict=True):
            row = rows.get(lease.lease_id)
            if key in earlier:
                answers.append(earlier[key].to_settlement())
            elif row is None or row.fencing_token != lease.fencing_token:
                answers.append(Refusal((Reason("fenced", f"{lease.lease_id} is not held with this token"),)))
            elif not row.is_live:
                answers.append(row.to_settlement(refunded=0))
            else:
                answers.append(self._settle(row, ended_us=min(ended_us, row.expires_us), key=key))
        return answers

    def _settle(self, row: LeaseRow, *, ended_us: int, key: str) -> Settlement:
        closed, charge, refund = close_row(row, ended_us=ended_us, cause="settled")
        digest = request_digest("settle", (row.lease_id, row.fencing_token, ended_us))
        body = {"key": key, "digest": digest, "charge": charge, "refund": refund, "lease": closed.to_json()}
        self.events.append(("lease.settled", row.lease_id, body))
        for scope, start, _ in row.scopes:
            self._post((scope, start), charged=charge, reserved=-row.reserved_micro_usd)
        self.closed.append(closed)
        settlement = closed.to_settlement(refunded=refund)
        self.done.append((key, "settled", digest, settlement))
        return settlement

    def _post(self, key: ScopeKey, *, charged: int = 0, reserved: int = 0) -> None:
        before = self.posts.get(key, (0, 0))
        self.posts[key] = (before[0] + charged, before[1] + reserved)

    def _flush_events(self) -> None:
        self.transaction.append_many(self.events)
        self.events.clear()

    def flush(self) -> None:
        """Write everything; call it once, before the transaction ends."""
        self._flush_events()
        connection = self.transaction.connection
        create_missing(self.transaction, [a for key, a in self.accounts.items() if key in self.posts])
        if self.posts:
            post_many(self.transaction, self.posts)
        if self.granted:
            lease_rows.insert(connection, *self.granted)
        if self.closed:
            lease_rows.update(connection, *self.closed)
        if self.done:
            lease_rows.record_many(connection, self.done)
