"""The lease book: `reserve` pays over every ancestor budget before a group starts, `renew` before each next window,
`settle` refunds what was not used.

Every operation is one transaction and has an idempotency key; every later one carries the lease's fencing token. What
was paid is never less than what workers can burn: they stop by their own clock at the end of the window, and window,
grace and checkpoint time are paid ahead. A renewal closes the running segment (charge and refund) and pays a new one,
in the period in which it is asked for.
Leaves to others: who runs next (`decide`), delivery of warnings (`outbox`), bringing files in (`configuration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from mlops.budgets import lease_rows
from mlops.budgets.accounts import (
    Account,
    find_shortages,
    list_scopes,
    load_accounts,
    post,
    set_overdraft,
    warn_crossed,
)
from mlops.budgets.configuration import load_applied
from mlops.budgets.lease_batch import LeaseBatch
from mlops.budgets.lease_rows import LeaseRow, request_digest
from mlops.budgets.lease_rules import (
    LONGEST_PREPAID_US,
    check_holder,
    check_live,
    check_policy,
    check_renewal,
    check_request,
    close_row,
    find_overdrafts,
    find_stopped,
    make_row,
    refuse_reused,
)
from mlops.budgets.lease_types import Lease, LeaseRequest, Purpose, Settlement, SpendLimit
from mlops.budgets.money import cost_of, price_per_hour
from mlops.budgets.quota import QuotaBoard
from mlops.budgets.tree import BudgetTree
from mlops.clock import SECOND_US, Clock
from mlops.errors import Reason, Refusal
from mlops.ids import Ids
from mlops.ledger.connection import Ledger, Transaction

__all__ = ["Lease", "LeaseBook", "LeaseRequest", "Purpose", "Settlement", "SpendLimit"]


class LeaseBook:
    """Leases on the ledger; `mlops.budgets.opening.open_lease_book` applies the budget files first."""

    def __init__(self, ledger: Ledger, clock: Clock, ids: Ids) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids = ids

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        """Pay for window + grace + checkpoint over every ancestor scope, all or nothing.

        Returns:
            The lease (the same one when the key was used before), or every ground of the refusal.
        """
        with self._ledger.write() as transaction:
            return self.reserve_in(transaction, request)

    def reserve_in(self, transaction: Transaction, request: LeaseRequest) -> Lease | Refusal:
        """As `reserve`, inside a transaction of the caller's (admission of several groups at once)."""
        digest = request_digest("reserve", request)
        earlier = lease_rows.find_operation(transaction.connection, request.key)
        if earlier is not None:
            return earlier.to_lease() if earlier.digest == digest else refuse_reused(request.key)
        tree = load_applied(transaction.connection)
        grounds = check_request(request, tree, now_us=transaction.now_us)
        if grounds:
            return Refusal(grounds)
        rate = tree.rates.find_price(request.accelerators.kind, at_us=transaction.now_us) or 0
        price = price_per_hour(rate, milli=request.milli)
        cost = cost_of(price, duration_us=request.prepaid_us)
        scopes = list_scopes(tree.path(request.budget), request.limits, now_us=transaction.now_us)
        loaded = load_accounts(transaction.connection, scopes)
        grounds = (
            *check_policy(loaded, request.purpose),
            *_check_quota(transaction.connection, tree, request, loaded),
            *find_shortages(loaded, amount=cost),
        )
        if grounds:
            return Refusal(grounds)
        row = make_row(
            request, self._ids.new("lease"), now_us=transaction.now_us, price=price, cost=cost, scopes=loaded
        )
        return self._grant(transaction, row, loaded, key=request.key, digest=digest)

    def _grant(
        self, transaction: Transaction, row: LeaseRow, loaded: Sequence[Account], *, key: str, digest: str
    ) -> Lease:
        warn_crossed(transaction, loaded, added=row.reserved_micro_usd)
        row = replace(row, fencing_token=transaction.next_number)
        transaction.append("lease.reserved", row.lease_id, {"key": key, "digest": digest, "lease": row.to_json()})
        post(transaction, loaded, reserved=row.reserved_micro_usd)
        lease_rows.insert(transaction.connection, row)
        lease = row.to_lease()
        lease_rows.record(transaction.connection, key=key, operation="reserve", digest=digest, result=lease)
        return lease

    def reserve_many_in(self, transaction: Transaction, requests: Sequence[LeaseRequest]) -> list[Lease | Refusal]:
        """As `reserve_in` for each in turn, with a handful of statements for all."""
        batch = LeaseBatch(transaction, self._ids)
        answers = batch.reserve(requests)
        batch.flush()
        return answers

    def settle_many_in(
        self, transaction: Transaction, ended: Sequence[tuple[Lease, int]]
    ) -> list[Settlement | Refusal]:
        """As `settle_in` for each lease with its end; the key is `settle:<lease>`."""
        batch = LeaseBatch(transaction, self._ids)
        answers = batch.settle(ended)
        batch.flush()
        return answers

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        """Charge what was used so far and pay for another window, grace and checkpoint time from now.

        A refusal leaves the lease as it is: the group has until its window ends, and is paid until it has stopped.
        """
        digest = request_digest("renew", (lease_id, fencing_token, window_seconds))
        with self._ledger.write() as transaction:
            earlier = lease_rows.find_operation(transaction.connection, key)
            if earlier is not None:
                return earlier.to_lease() if earlier.digest == digest else refuse_reused(key)
            row = lease_rows.find(transaction.connection, lease_id)
            grounds = check_live(row, lease_id, fencing_token=fencing_token, now_us=transaction.now_us)
            window_us = round(window_seconds * SECOND_US)
            if not 0 < window_us <= LONGEST_PREPAID_US:
                grounds = (*grounds, Reason("bad-request", f"a window of {window_seconds:g} s cannot be granted"))
            if row is None or grounds:
                return Refusal(grounds)
            return self._renew(transaction, row, window_us=window_us, key=key, digest=digest)

    def _renew(
        self, transaction: Transaction, row: LeaseRow, *, window_us: int, key: str, digest: str
    ) -> Lease | Refusal:
        now_us = transaction.now_us
        charge = cost_of(row.price_micro_usd_per_hour, duration_us=now_us - row.segment_started_us)
        cost = cost_of(row.price_micro_usd_per_hour, duration_us=window_us + row.tail_us)
        tree = load_applied(transaction.connection)
        scopes = list_scopes(tree.path(row.budget), row.list_limits(), now_us=now_us)
        loaded = load_accounts(transaction.connection, scopes)
        keys = {(scope, start) for scope, start, _ in row.scopes}
        # What the running segment gives back counts only where it was paid: in the account of its period.
        settled = tuple(
            replace(
                account,
                charged_micro_usd=account.charged_micro_usd + charge,
                reserved_micro_usd=account.reserved_micro_usd - row.reserved_micro_usd,
            )
            if account.key in keys
            else account
            for account in loaded
        )
        grounds = (*check_renewal(settled, row), *find_shortages(settled, amount=cost))
        overdrafts = find_overdrafts(tree, row, settled, cost=cost)
        if grounds and not overdrafts:
            warn_crossed(transaction, loaded, added=0, stopped=find_stopped(settled, cost=cost))
            return Refusal(grounds)
        return self._extend(
            transaction, row, settled, charge=charge, cost=cost, window_us=window_us, overdrafts=overdrafts,
            key=key, digest=digest,
        )  # fmt: skip

    def _extend(
        self,
        transaction: Transaction,
        row: LeaseRow,
        settled: Sequence[Account],
        *,
        charge: int,
        cost: int,
        window_us: int,
        overdrafts: dict[str, int],
        key: str,
        digest: str,
    ) -> Lease:
        now_us = transaction.now_us
        old = row.list_accounts()
        renewed = replace(
            row,
            segment_started_us=now_us,
            window_ends_us=now_us + window_us,
            expires_us=now_us + window_us + row.tail_us,
            charged_micro_usd=row.charged_micro_usd + charge,
            refunded_micro_usd=row.refunded_micro_usd + row.reserved_micro_usd - charge,
            reserved_micro_usd=cost,
            paid_micro_usd=row.paid_micro_usd + cost,
            scopes=tuple((a.scope, a.period_start_us, a.cap_micro_usd) for a in settled),
        )
        warn_crossed(transaction, settled, added=cost, stopped=overdrafts)
        for account in settled:
            if account.scope in overdrafts:
                set_overdraft(transaction, account, overdraft=overdrafts[account.scope])
        body = {"key": key, "digest": digest, "charge": charge, "overdrafts": overdrafts, "lease": renewed.to_json()}
        transaction.append("lease.renewed", row.lease_id, body)
        post(transaction, old, charged=charge, reserved=-row.reserved_micro_usd)
        fresh = tuple(
            replace(a, exists=a.exists or a.scope in overdrafts or a.key in {o.key for o in old}) for a in settled
        )
        post(transaction, fresh, reserved=cost)
        lease_rows.update(transaction.connection, renewed)
        lease = renewed.to_lease()
        lease_rows.record(transaction.connection, key=key, operation="renew", digest=digest, result=lease)
        return lease

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        """Charge the time used and refund the rest; an unknown end (None) is charged to the expiry.

        A lease that was closed already keeps its charge; asking again with the same key gives the same answer.
        """
        with self._ledger.write() as transaction:
            return self.settle_in(transaction, lease_id, fencing_token=fencing_token, ended_us=ended_us, key=key)

    def settle_in(
        self, transaction: Transaction, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str
    ) -> Settlement | Refusal:
        """As `settle`, inside a transaction of the caller's."""
        digest = request_digest("settle", (lease_id, fencing_token, ended_us))
        earlier = lease_rows.find_operation(transaction.connection, key)
        if earlier is not None:
            return earlier.to_settlement() if earlier.digest == digest else refuse_reused(key)
        row = lease_rows.find(transaction.connection, lease_id)
        grounds = check_holder(row, lease_id, fencing_token=fencing_token)
        if row is None or grounds:
            return Refusal(grounds)
        if not row.is_live:
            return row.to_settlement(refunded=0)
        end_us = row.expires_us if ended_us is None else min(ended_us, row.expires_us)
        return _close(transaction, row, ended_us=end_us, cause="settled", key=key, digest=digest)

    def close_expired(self, now_us: int | None = None) -> tuple[Settlement, ...]:
        """Charge leases whose holder vanished to their expiry, and end them."""
        with self._ledger.write() as transaction:
            at_us = transaction.now_us if now_us is None else now_us
            rows = lease_rows.list_live(transaction.connection, expired_at_us=at_us)
            return tuple(
                _close(
                    transaction, row, ended_us=row.expires_us, cause="expired",
                    key=f"expire:{row.lease_id}", digest=request_digest("expire", row.lease_id),
                )
                for row in rows
            )  # fmt: skip

    def find(self, lease_id: str) -> Lease | None:
        """One lease, live or ended."""
        with self._ledger.read() as connection:
            row = lease_rows.find(connection, lease_id)
        return row.to_lease() if row else None

    def list_live(self) -> tuple[Lease, ...]:
        """Every live lease, oldest first."""
        with self._ledger.read() as connection:
            return tuple(row.to_lease() for row in lease_rows.list_live(connection))


def _close(transaction: Transaction, row: LeaseRow, *, ended_us: int, cause: str, key: str, digest: str) -> Settlement:
    closed, charge, refund = close_row(row, ended_us=ended_us, cause=cause)
    body = {"key": key, "digest": digest, "charge": charge, "refund": refund, "lease": closed.to_json()}
    transaction.append(f"lease.{cause}", row.lease_id, body)
    post(transaction, row.list_accounts(), charged=charge, reserved=-row.reserved_micro_usd)
    lease_rows.update(transaction.connection, closed)
    settlement = closed.to_settlement(refunded=refund)
    lease_rows.record(transaction.connection, key=key, operation=cause, digest=digest, result=settlement)
    return settlement


def _check_quota(
    connection: sa.Connection, tree: BudgetTree, request: LeaseRequest, loaded: Sequence[Account]
) -> tuple[Reason, ...]:
    kind = request.accelerators.kind
    if not any(kind in node.quotas for node in tree.nodes):
        return ()
    board = load_quota_use(connection, tree, kind)
    may_borrow = not any("stop-borrowing" in account.find_actions() for account in loaded)
    limit = board.find_limit(request.budget, kind, request.milli, may_borrow=may_borrow)
    return (Reason("quota-exceeded", limit.render_text()),) if limit else ()


def load_quota_use(connection: sa.Connection, tree: BudgetTree, kind: str) -> QuotaBoard:
    """Units of a kind in live leases, on a board of their own."""
    board = QuotaBoard.of(tree).copy()
    for budget, units in lease_rows.sum_live(connection, kind):
        if budget in tree.by_name:
            board.use(budget, kind, units)
    return board
