"""The queue on the ledger: groups are submitted, decided about under the write lock, and told what to do when they ask.

There is no scheduler process: whoever changes something (submits, ends, drains a node) runs `decide` in the same
transaction. A start reserves its lease there and then; a group that must leave finds `leaving` with a deadline when its
driver polls. Leaves to others: the rule (`decide`), money (`leases`), workers (mlops/training).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from mlops.budgets import lease_rows
from mlops.budgets.accounts import list_scopes, load_accounts
from mlops.budgets.configuration import load_applied
from mlops.budgets.decide import decide
from mlops.budgets.lease_types import Lease, LeaseRequest, Purpose, SpendLimit
from mlops.budgets.leases import LeaseBook
from mlops.budgets.money import price_per_hour, to_milli
from mlops.budgets.sql_groups import groups, nodes
from mlops.budgets.state import Action, Group, Node, Placement, Preempt, Refuse, Resize, Settings, Start, State, Wait
from mlops.budgets.tree import BudgetTree
from mlops.clock import SECOND_US
from mlops.errors import Reason, Refusal
from mlops.ledger.connection import Ledger, Transaction
from mlops.units import Accelerators

Status = Literal["waiting", "running", "leaving", "ended", "refused"]
ABSENT_US = 60 * SECOND_US
"""A waiting group whose driver has not asked for this long is dropped."""
LIVE_SETTINGS = Settings(minimum_run_us=120 * SECOND_US, leave_us=120 * SECOND_US)


@dataclass(frozen=True)
class GroupRequest:
    """A worker group that wants to run."""

    group_id: str
    """Also the idempotency key of its submission."""
    budget: str
    accelerators: Accelerators
    holder: str
    expected_seconds: float
    """Predicted run time (`prediction.predict_trial`)."""
    window_seconds: float = 60.0
    grace_seconds: float = 10.0
    checkpoint_seconds: float = 60.0
    priority: int | None = None
    """None: the budget's."""
    minimum_accelerators: float = 0.0
    step_accelerators: float = 0.0
    sweep_id: str = ""
    limits: tuple[SpendLimit, ...] = ()
    spender: str = ""
    claim: str = ""
    purpose: Purpose = "training"

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> GroupRequest:
        """The value that `to_json` wrote."""
        content = json.loads(text)
        content["accelerators"] = Accelerators(**content["accelerators"])
        content["limits"] = tuple(SpendLimit(**limit) for limit in content["limits"])
        return cls(**content)

    def to_lease_request(self, *, key: str) -> LeaseRequest:
        """What a start reserves."""
        return LeaseRequest(
            key=key,
            budget=self.budget,
            accelerators=self.accelerators,
            window_seconds=self.window_seconds,
            grace_seconds=self.grace_seconds,
            checkpoint_seconds=self.checkpoint_seconds,
            holder=self.holder,
            sweep_id=self.sweep_id,
            limits=self.limits,
            spender=self.spender,
            claim=self.claim,
            purpose=self.purpose,
            group_id=self.group_id,
        )


@dataclass(frozen=True)
class GroupStatus:
    """What a driver sees when it asks."""

    group_id: str
    budget: str
    kind: str
    units: int
    status: Status
    reason: str
    reason_code: str
    placement: Placement
    lease_id: str
    leaves_by_us: int
    attempt: int

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Admission:
    """The queue of one ledger."""

    def __init__(self, ledger: Ledger, leases: LeaseBook, *, settings: Settings = LIVE_SETTINGS) -> None:
        self._ledger = ledger
        self._leases = leases
        self._settings = settings

    def report_nodes(self, found: Iterable[Node], *, kind: str | None = None) -> None:
        """The cluster as it is now; a node that is missing is gone. With a kind, only nodes of that kind are told."""
        with self._ledger.write() as transaction:
            others = [node for node in _load_nodes(transaction.connection) if kind is not None and node.kind != kind]
            wanted = {node.name: node for node in (*others, *found)}
            held = {node.name: node for node in _load_nodes(transaction.connection)}
            if wanted != held:
                transaction.connection.execute(nodes.delete())
                if wanted:
                    transaction.connection.execute(nodes.insert(), [asdict(node) for node in wanted.values()])
                body = {"nodes": [asdict(node) for _, node in sorted(wanted.items())]}
                transaction.append("cluster.reported", "cluster", body)
                self._decide(transaction)

    def submit(self, request: GroupRequest) -> GroupStatus:
        """Queue a group (once per id) and decide; one of a budget that does not exist is refused, and not queued."""
        with self._ledger.write() as transaction:
            tree = load_applied(transaction.connection)
            if not tree.path(request.budget):
                return _refuse_unknown(request, known=tree.by_name)
            if _find_row(transaction.connection, request.group_id) is None:
                transaction.append("group.submitted", request.group_id, {"request": json.loads(request.to_json())})
                now_us = transaction.now_us
                row = {
                    "group_id": request.group_id, "request": request.to_json(), "status": "waiting",
                    "remaining_us": max(round(request.expected_seconds * SECOND_US), 1), "submitted_us": now_us,
                    "waiting_since_us": now_us, "waited_us": 0, "started_us": 0, "checkpointed_us": 0,
                    "leaves_by_us": 0, "placement": "[]", "lease_id": "", "attempt": 0, "evicted_by": "[]",
                    "yields_to": "", "yields_from_us": 0, "reason": "", "asked_us": now_us, "reason_code": "",
                }  # fmt: skip
                transaction.connection.execute(groups.insert(), row)
                self._decide(transaction)
            return _require_status(transaction.connection, request.group_id)

    def poll(self, group_id: str) -> GroupStatus:
        """Where a group stands; a driver asks each second. One that waits and does not ask for a minute is dropped."""
        with self._ledger.write() as transaction:
            row = _find_row(transaction.connection, group_id)
            if row is not None:
                _update(transaction, group_id, asked_us=transaction.now_us)
            self._decide(transaction)
            return _require_status(transaction.connection, group_id)

    def find_holder(self, lease_id: str) -> GroupStatus | None:
        """The group that a live lease was given to."""
        with self._ledger.read() as connection:
            row = connection.execute(sa.select(groups).where(groups.c.lease_id == lease_id)).one_or_none()
        return _to_status(row) if row is not None else None

    def find_lease(self, group_id: str) -> Lease | None:
        """The live lease of a running group."""
        with self._ledger.read() as connection:
            row = _find_row(connection, group_id)
        return self._leases.find(row.lease_id) if row is not None and row.lease_id else None

    def report_checkpoint(self, group_id: str, *, fencing_token: int, remaining_seconds: float) -> Refusal | None:
        """Work up to now is safe; and how long it will still run."""
        with self._ledger.write() as transaction:
            refusal = _check_token(transaction.connection, group_id, fencing_token=fencing_token)
            if refusal is None:
                remaining_us = max(round(remaining_seconds * SECOND_US), 1)
                _update(transaction, group_id, checkpointed_us=transaction.now_us, remaining_us=remaining_us)
            return refusal

    def leave(self, group_id: str, *, fencing_token: int, is_done: bool, ended_us: int | None) -> Refusal | None:
        """The group holds no accelerator any more: it ended, or waits again after it was asked to leave."""
        with self._ledger.write() as transaction:
            refusal = _check_token(transaction.connection, group_id, fencing_token=fencing_token)
            row = _find_row(transaction.connection, group_id)
            if refusal is not None or row is None:
                return refusal
            key = f"leave:{group_id}:{row.attempt}"
            self._leases.settle_in(transaction, row.lease_id, fencing_token=fencing_token, ended_us=ended_us, key=key)
            changes: dict[str, Any] = {"lease_id": "", "placement": "[]", "yields_to": "", "leaves_by_us": 0}
            if is_done:
                changes["status"] = "ended"
            else:
                changes |= {"status": "waiting", "waiting_since_us": transaction.now_us, "asked_us": transaction.now_us}
            transaction.append(f"group.{'ended' if is_done else 'left'}", group_id, {"attempt": row.attempt})
            _update(transaction, group_id, **changes)
            self._decide(transaction)
            return None

    def cancel(self, group_id: str) -> None:
        """Take a group that waits, or was refused, out of the queue."""
        with self._ledger.write() as transaction:
            row = _find_row(transaction.connection, group_id)
            if row is not None and row.status in ("waiting", "refused"):
                transaction.append("group.ended", group_id, {"attempt": row.attempt})
                _update(transaction, group_id, status="ended", reason="cancelled")
                self._decide(transaction)

    def drop_lost(self) -> None:
        """Groups whose lease expired leave their place, and those that nobody asks for leave the queue."""
        with self._ledger.write() as transaction:
            self._drop_lost(transaction)
            self._drop_absent(transaction)

    def _decide(self, transaction: Transaction) -> None:
        self._drop_lost(transaction)
        self._drop_absent(transaction)
        state = load_state(transaction.connection, now_us=transaction.now_us, settings=self._settings)
        if not any(group.status == "waiting" for group in state.groups):
            return
        for action in decide(state, transaction.now_us):
            self._apply(transaction, action)

    def _drop_lost(self, transaction: Transaction) -> None:
        """Groups whose lease expired: the driver is gone, its workers have stopped by their own clock."""
        query = sa.select(groups).where(groups.c.status.in_(("running", "leaving")))
        for row in transaction.connection.execute(query).all():
            lease = lease_rows.find(transaction.connection, row.lease_id)
            if lease is None or not lease.is_live or lease.expires_us <= transaction.now_us:
                if lease is not None and lease.is_live:
                    self._leases.settle_in(
                        transaction, row.lease_id, fencing_token=lease.fencing_token, ended_us=None,
                        key=f"lost:{row.group_id}:{row.attempt}",
                    )  # fmt: skip
                transaction.append("group.lost", row.group_id, {"attempt": row.attempt})
                _update(
                    transaction, row.group_id, status="waiting", lease_id="", placement="[]", yields_to="",
                    waiting_since_us=transaction.now_us, reason="its driver vanished",
                )  # fmt: skip

    def _drop_absent(self, transaction: Transaction) -> None:
        """Waiting groups whose driver stopped asking: nobody would use what they were given."""
        since_us = transaction.now_us - ABSENT_US
        query = sa.select(groups.c.group_id, groups.c.attempt)
        query = query.where(groups.c.status == "waiting", groups.c.asked_us < since_us)
        for row in transaction.connection.execute(query).all():
            transaction.append("group.ended", row.group_id, {"attempt": row.attempt})
            _update(transaction, row.group_id, status="ended", reason="its driver stopped asking")

    def _apply(self, transaction: Transaction, action: Action) -> None:
        if isinstance(action, Start):
            self._start(transaction, action)
        elif isinstance(action, Preempt):
            self._preempt(transaction, action)
        elif isinstance(action, Wait | Refuse):
            row = _find_row(transaction.connection, action.group_id)
            status = "refused" if isinstance(action, Refuse) else "waiting"
            if row is not None and (row.reason != action.reason.text or row.status != status):
                _update(
                    transaction, action.group_id, status=status, reason=action.reason.text,
                    reason_code=action.reason.code,
                )  # fmt: skip
        elif isinstance(action, Resize):
            _update(transaction, action.group_id, reason=f"may now use {dict(action.placement)}: {action.reason.text}")

    def _start(self, transaction: Transaction, action: Start) -> None:
        row = _find_row(transaction.connection, action.group_id)
        assert row is not None
        request = GroupRequest.from_json(row.request)
        attempt = row.attempt + 1
        units = sum(count for _, count in action.placement)
        request = replace(request, accelerators=Accelerators(request.accelerators.kind, units / 1000))
        lease = self._leases.reserve_in(transaction, request.to_lease_request(key=f"start:{row.group_id}:{attempt}"))
        if isinstance(lease, Refusal):
            code = lease.reasons[0].code
            _update(transaction, row.group_id, reason=lease.render_text(), reason_code=code)
            return
        now_us = transaction.now_us
        body = {"attempt": attempt, "placement": action.placement, "lease_id": lease.lease_id}
        transaction.append("group.started", row.group_id, body)
        _update(
            transaction, row.group_id, status="running", attempt=attempt, lease_id=lease.lease_id, reason="",
            reason_code="", placement=json.dumps(action.placement), started_us=now_us, checkpointed_us=now_us,
            waited_us=row.waited_us + now_us - row.waiting_since_us, yields_to=action.yields_to,
            yields_from_us=action.yields_from_us,
        )  # fmt: skip

    def _preempt(self, transaction: Transaction, action: Preempt) -> None:
        row = _find_row(transaction.connection, action.group_id)
        assert row is not None
        body = {"in_favour_of": action.in_favour_of, "leaves_by_us": action.leaves_by_us, "reason": action.reason.text}
        transaction.append("group.preempted", action.group_id, body)
        evicted_by = sorted({*json.loads(row.evicted_by), action.in_favour_of})
        _update(
            transaction, action.group_id, status="leaving", leaves_by_us=action.leaves_by_us,
            evicted_by=json.dumps(evicted_by), reason=action.reason.text,
        )  # fmt: skip


def load_state(connection: sa.Connection, *, now_us: int, settings: Settings = LIVE_SETTINGS) -> State:
    """What the rule sees, from the ledger."""
    tree = load_applied(connection)
    rows = connection.execute(sa.select(groups).where(groups.c.status.in_(("waiting", "running", "leaving")))).all()
    alive = {row.group_id for row in rows}
    accounts = load_accounts(connection, list_scopes(tree.nodes, (), now_us=now_us))
    by_name = {account.scope.removeprefix("budget:"): account for account in accounts}
    return State(
        tree=tree,
        nodes=_load_nodes(connection),
        groups=tuple(_to_group(row, tree, alive=alive, now_us=now_us) for row in rows),
        money_left={name: each.left_micro_usd for name, each in by_name.items() if each.left_micro_usd is not None},
        actions={name: each.find_actions() for name, each in by_name.items()},
        settings=settings,
    )


def load_queue(connection: sa.Connection) -> tuple[GroupStatus, ...]:
    """Groups that have not ended, in order of submission."""
    query = (
        sa.select(groups)
        .where(groups.c.status.in_(("waiting", "running", "leaving", "refused")))
        .order_by(groups.c.submitted_us, groups.c.group_id)
    )
    return tuple(_to_status(row) for row in connection.execute(query))


def _to_group(row: sa.Row[Any], tree: BudgetTree, *, alive: set[str], now_us: int) -> Group:
    request = GroupRequest.from_json(row.request)
    kind = request.accelerators.kind
    units = to_milli(request.accelerators.count)
    placement = tuple((name, count) for name, count in json.loads(row.placement))
    held = sum(count for _, count in placement) or units
    rate = tree.rates.find_price(kind, at_us=now_us) or 0
    node = tree.by_name.get(request.budget)
    ran_us = now_us - max(row.started_us, row.checkpointed_us) if row.status != "waiting" else 0
    seconds = request.window_seconds + request.grace_seconds + request.checkpoint_seconds
    return Group(
        group_id=row.group_id,
        budget=request.budget,
        kind=kind,
        units=held,
        remaining_us=max(row.remaining_us - ran_us, 1),
        submitted_us=row.submitted_us,
        priority=request.priority if request.priority is not None else (node.priority if node else 0),
        minimum_units=to_milli(request.minimum_accelerators),
        maximum_units=units if request.step_accelerators else 0,
        step_units=to_milli(request.step_accelerators),
        status=row.status,
        placement=placement,
        started_us=row.started_us,
        checkpointed_us=row.checkpointed_us,
        waited_us=row.waited_us,
        waiting_since_us=row.waiting_since_us,
        leaves_by_us=row.leaves_by_us,
        price_micro_usd_per_hour=price_per_hour(rate, milli=held),
        prepaid_us=round(seconds * SECOND_US),
        evicted_by=frozenset(json.loads(row.evicted_by)) & alive,
        yields_to=row.yields_to,
        yields_from_us=row.yields_from_us,
        is_serving=request.purpose == "serving",
    )


def _to_status(row: sa.Row[Any]) -> GroupStatus:
    request = GroupRequest.from_json(row.request)
    placement = tuple((name, count) for name, count in json.loads(row.placement))
    return GroupStatus(
        group_id=row.group_id,
        budget=request.budget,
        kind=request.accelerators.kind,
        units=sum(count for _, count in placement) or to_milli(request.accelerators.count),
        status=row.status,
        reason=row.reason,
        reason_code=row.reason_code,
        placement=placement,
        lease_id=row.lease_id,
        leaves_by_us=row.leaves_by_us,
        attempt=row.attempt,
    )


def _refuse_unknown(request: GroupRequest, *, known: Iterable[str]) -> GroupStatus:
    return GroupStatus(
        group_id=request.group_id,
        budget=request.budget,
        kind=request.accelerators.kind,
        units=to_milli(request.accelerators.count),
        status="refused",
        reason=f"there is no budget {request.budget!r}; known: {', '.join(known) or 'none'}",
        reason_code="unknown-budget",
        placement=(),
        lease_id="",
        leaves_by_us=0,
        attempt=0,
    )


def _load_nodes(connection: sa.Connection) -> tuple[Node, ...]:
    rows = connection.execute(sa.select(nodes).order_by(nodes.c.name))
    return tuple(Node(row.name, row.kind, row.units, is_draining=row.is_draining) for row in rows)


def _find_row(connection: sa.Connection, group_id: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(groups).where(groups.c.group_id == group_id)).one_or_none()


def _require_status(connection: sa.Connection, group_id: str) -> GroupStatus:
    row = _find_row(connection, group_id)
    if row is None:
        raise KeyError(group_id)
    return _to_status(row)


def _check_token(connection: sa.Connection, group_id: str, *, fencing_token: int) -> Refusal | None:
    row = _find_row(connection, group_id)
    lease = lease_rows.find(connection, row.lease_id) if row is not None and row.lease_id else None
    if lease is None or lease.fencing_token != fencing_token:
        return Refusal((Reason("fenced", f"{group_id} is not held with fencing token {fencing_token} any more"),))
    return None


def _update(transaction: Transaction, group_id: str, **changes: Any) -> None:
    transaction.connection.execute(groups.update().where(groups.c.group_id == group_id).values(**changes))
