"""What serves is paid: one lease for each product of an environment that names a budget.

The reconciler reserves it before anything starts and renews it in its rounds; replicas come before training, since they
hold their lease without queueing. An exhausted budget lets running replicas go on by an overdraft that is warned about,
unless it says `serving: stop`; it never lets new ones start. The short overlap of two versions while traffic moves is
not metered, and neither is what serves while no reconciler runs.
Leaves to others: money and quotas (mlops/budgets), starting and stopping (product_round.py).
"""

from __future__ import annotations

from mlops.budgets.configuration import load_applied
from mlops.budgets.lease_types import Lease, LeaseRequest
from mlops.budgets.leases import LeaseBook
from mlops.budgets.opening import open_lease_book
from mlops.clock import SECOND_US
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.site import Site
from mlops.errors import Refusal

_TAIL_SECONDS = 5.0


def pay_serving(site: Site, rules: EnvironmentSpec, product: str) -> Refusal | None:
    """Hold the lease of a product here: reserve it, or renew it when less than half of its window is left.

    Returns:
        Why it is not paid; None when it is, or when the environment names no budget.

    Raises:
        ProjectError: The budget files have problems.
    """
    if rules.budget is None:
        return None
    held = _find_held(site, rules, product)
    now_us = site.clock.now_us()
    if held is not None and held.window_ends_us - now_us > rules.budget.window * SECOND_US / 2:
        return None
    book = open_lease_book(site.places, site.ledger, site.clock, site.ids)
    if held is not None and held.expires_us > now_us:
        answer = book.renew(
            held.lease_id,
            fencing_token=held.fencing_token,
            window_seconds=rules.budget.window,
            key=f"{held.lease_id}:renew:{held.window_ends_us}",
        )
        return answer if isinstance(answer, Refusal) else None
    book.close_expired()
    return _reserve(site, rules, product, book)


def _reserve(site: Site, rules: EnvironmentSpec, product: str, book: LeaseBook) -> Refusal | None:
    assert rules.budget is not None
    answer = book.reserve(
        LeaseRequest(
            key=site.ids.new("serving"),
            budget=rules.budget.name,
            accelerators=rules.budget.accelerators,
            window_seconds=rules.budget.window,
            grace_seconds=_TAIL_SECONDS,
            checkpoint_seconds=0.0,
            holder=_holder(rules, product),
            purpose="serving",
        )
    )
    return answer if isinstance(answer, Refusal) else None


def is_stop_asked(site: Site, rules: EnvironmentSpec) -> bool:
    """Whether a budget on the way up ends what serves when it is exhausted."""
    with site.ledger.read() as connection:
        path = load_applied(connection).path(rules.budget.name if rules.budget else "")
    return any(node.serving == "stop" for node in path)


def release_serving(site: Site, rules: EnvironmentSpec, product: str) -> None:
    """Nothing of the product serves here any more: charge what was used and refund the rest."""
    held = _find_held(site, rules, product)
    if held is not None:
        LeaseBook(site.ledger, site.clock, site.ids).settle(
            held.lease_id,
            fencing_token=held.fencing_token,
            ended_us=site.clock.now_us(),
            key=f"{held.lease_id}:settle",
        )


def _find_held(site: Site, rules: EnvironmentSpec, product: str) -> Lease | None:
    leases = LeaseBook(site.ledger, site.clock, site.ids).list_live()
    return next((lease for lease in leases if lease.holder == _holder(rules, product)), None)


def _holder(rules: EnvironmentSpec, product: str) -> str:
    return f"serving:{rules.name}/{product}"
