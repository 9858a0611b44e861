"""Pure rules of leases: what a request must satisfy, what a renewal may cost, what an end is charged.

Leaves to others: transactions and rows (`leases`, `lease_batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlops.budgets.accounts import Account, find_shortages
from mlops.budgets.claims import check_spender
from mlops.budgets.lease_rows import LeaseRow
from mlops.budgets.lease_types import LeaseRequest, Purpose
from mlops.budgets.money import cost_of
from mlops.budgets.tree import BudgetTree
from mlops.clock import DAY_US, SECOND_US
from mlops.errors import Reason, Refusal
from mlops.units import render_money

LONGEST_PREPAID_US = 31 * DAY_US


def close_row(row: LeaseRow, *, ended_us: int, cause: str) -> tuple[LeaseRow, int, int]:
    """The ended lease, what its last segment is charged, and what is refunded."""
    charge = cost_of(row.price_micro_usd_per_hour, duration_us=ended_us - row.segment_started_us)
    charge = min(charge, row.reserved_micro_usd)
    refund = row.reserved_micro_usd - charge
    closed = replace(
        row,
        is_live=False,
        reserved_micro_usd=0,
        charged_micro_usd=row.charged_micro_usd + charge,
        refunded_micro_usd=row.refunded_micro_usd + refund,
        ended_us=max(ended_us, row.started_us),
        cause=cause,
    )
    return closed, charge, refund


def make_row(
    request: LeaseRequest, lease_id: str, *, now_us: int, price: int, cost: int, scopes: Sequence[Account]
) -> LeaseRow:
    """The row of a new lease."""
    window_us = round(request.window_seconds * SECOND_US)
    return LeaseRow(
        lease_id=lease_id,
        fencing_token=0,
        budget=request.budget,
        kind=request.accelerators.kind,
        milli=request.milli,
        holder=request.holder,
        sweep_id=request.sweep_id,
        group_id=request.group_id,
        purpose=request.purpose,
        is_live=True,
        started_us=now_us,
        segment_started_us=now_us,
        window_ends_us=now_us + window_us,
        expires_us=now_us + request.prepaid_us,
        tail_us=request.prepaid_us - window_us,
        price_micro_usd_per_hour=price,
        reserved_micro_usd=cost,
        charged_micro_usd=0,
        paid_micro_usd=cost,
        refunded_micro_usd=0,
        scopes=tuple((account.scope, account.period_start_us, account.cap_micro_usd) for account in scopes),
        ended_us=None,
        cause="",
    )


def check_request(request: LeaseRequest, tree: BudgetTree, *, now_us: int) -> tuple[Reason, ...]:
    """What is wrong with a request, before money is looked at."""
    found: list[Reason] = []
    path = tree.path(request.budget)
    if not path:
        known = ", ".join(tree.by_name) or "none"
        found.append(Reason("unknown-budget", f"there is no budget {request.budget!r}; known: {known}"))
    elif tree.rates.find_price(request.accelerators.kind, at_us=now_us) is None:
        known = ", ".join(sorted(tree.rates.kinds))
        found.append(Reason("unknown-accelerator", f"{request.accelerators.kind} has no price now; priced: {known}"))
    times = (request.window_seconds, request.grace_seconds, request.checkpoint_seconds)
    if not (all(0 <= each < float("inf") for each in times) and 0 < request.prepaid_us <= LONGEST_PREPAID_US):
        found.append(Reason("bad-request", f"window, grace and checkpoint of {times} s cannot be granted"))
    if not 0 < request.milli < 1_000_000_000:
        found.append(Reason("bad-request", f"{request.accelerators} cannot be granted"))
    if any(limit.scope.startswith("budget:") or limit.cap_micro_usd < 0 for limit in request.limits):
        found.append(Reason("bad-request", "a limit is `sweep:<id>` or `trial:<id>` with an amount of at least 0"))
    return (*found, *check_spender(path, person=request.spender, claim=request.claim, now_us=now_us))


def check_policy(loaded: Sequence[Account], purpose: Purpose) -> tuple[Reason, ...]:
    """Thresholds in force that forbid new work."""
    stopped = {"no-new-trials", "checkpoint-and-stop"}
    return tuple(
        Reason("budget-policy", f"{account.scope} starts no new {purpose} work: {_render_committed(account)}")
        for account in loaded
        if stopped & account.find_actions()
    )


def check_renewal(settled: Sequence[Account], row: LeaseRow) -> tuple[Reason, ...]:
    """Thresholds in force that end running work."""
    if row.purpose == "serving":
        return ()
    return tuple(
        Reason("budget-policy", f"{account.scope} checkpoints and stops running work: {_render_committed(account)}")
        for account in settled
        if "checkpoint-and-stop" in account.find_actions()
    )


def find_stopped(settled: Sequence[Account], *, cost: int) -> frozenset[str]:
    """Scopes because of which a renewal is refused."""
    return frozenset(
        account.scope
        for account in settled
        if find_shortages([account], amount=cost) or "checkpoint-and-stop" in account.find_actions()
    )


def _render_committed(account: Account) -> str:
    return f"{render_money(account.committed_micro_usd)} of {render_money(account.cap_micro_usd or 0)} are committed"


def find_overdrafts(tree: BudgetTree, row: LeaseRow, settled: Sequence[Account], *, cost: int) -> dict[str, int]:
    """Overdraft per scope with which running replicas go on, unless a policy on their way up says stop."""
    path = tree.path(row.budget)
    if row.purpose != "serving" or any(node.serving == "stop" for node in path):
        return {}
    return {
        account.scope: account.overdraft_micro_usd + cost - left
        for account in settled
        if (left := account.left_micro_usd) is not None and cost > left
    }


def check_holder(row: LeaseRow | None, lease_id: str, *, fencing_token: int) -> tuple[Reason, ...]:
    """Whether the lease exists and is held with this token."""
    if row is None:
        return (Reason("unknown-lease", f"there is no lease {lease_id}"),)
    if row.fencing_token != fencing_token:
        text = f"{lease_id} has fencing token {row.fencing_token}, not {fencing_token}: another holder has taken over"
        return (Reason("fenced", text),)
    return ()


def check_live(row: LeaseRow | None, lease_id: str, *, fencing_token: int, now_us: int) -> tuple[Reason, ...]:
    """As `check_holder`, and whether the lease still runs."""
    grounds = check_holder(row, lease_id, fencing_token=fencing_token)
    if row is None or grounds:
        return grounds
    if not row.is_live:
        return (Reason("lease-ended", f"{lease_id} has ended ({row.cause}); reserve a new one"),)
    if now_us >= row.expires_us:
        return (Reason("lease-expired", f"{lease_id} was paid until it expired; reserve a new one"),)
    return ()


def refuse_reused(key: str) -> Refusal:
    """The key was used for something else."""
    return Refusal((Reason("key-reused", f"the idempotency key {key} stands for another request"),))
