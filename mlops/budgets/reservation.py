"""EASY backfill: the first group that waits for units gets a place and a time; later groups must not delay it.

The place is found by letting running groups end at their predicted ends, one after another (Lifka 1995).
Leaves to others: whose turn it is (`decide`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlops.budgets.board import Board, Entry
from mlops.budgets.placement import find_placement
from mlops.budgets.state import Placement
from mlops.clock import SECOND_US
from mlops.errors import Reason


@dataclass(frozen=True)
class Reservation:
    """When and where the head is going to start."""

    head: Entry
    units: int
    starts_us: int
    placement: Placement


def make_reservation(board: Board, head: Entry, *, units: int, now_us: int) -> Reservation | None:
    """The earliest time at which ends, predicted or ordered, free a place; None when none does (a draining cluster)."""
    free = dict(board.free)
    names = board.nodes_of[head.kind]
    running = sorted(
        board.running.get(head.kind, {}).values(),
        key=lambda each: (max(each.frees_us, now_us), each.group.group_id),
    )
    for each in running:
        for name, count in each.placement:
            if name in free and not board.nodes[name].is_draining:
                free[name] += count
        placement = find_placement(board.nodes, free, names, units)
        if placement is not None:
            return Reservation(head, units, max(each.frees_us, now_us), placement)
    return None


def delays(
    board: Board, reservation: Reservation, entry: Entry, placement: Placement, *, units: int, now_us: int
) -> Reason | None:
    """Why a start would delay the reservation; None when it would not.

    It does not when it ends before, or when the reserved units stay free at that time. A reservation does not bind a
    group that could evict its head if that ran (it is ahead by rank, only younger), nor one that must yield to it.
    """
    ends_us = now_us + board.settings.restart_us + entry.remaining_us * entry.units // units
    if ends_us <= reservation.starts_us:
        return None
    head = reservation.head
    if entry.budget == head.budget and _outranks_waiting(board, entry, head, units=units):
        return None
    if _leaves_room(board, reservation, placement, now_us=now_us) or must_yield(
        board, reservation, entry, now_us=now_us
    ):
        return None
    seconds = (reservation.starts_us - now_us) // SECOND_US
    text = (
        f"would fit, but would delay {head.group.group_id}, which is ahead and starts in about {seconds} s; "
        f"give a shorter expected duration, or wait"
    )
    return Reason("reserved-ahead", text)


def must_yield(board: Board, reservation: Reservation, entry: Entry, *, now_us: int) -> bool:
    """Whether a group may start before the head on condition that it makes room when the head's time comes."""
    head = reservation.head
    if entry.budget != head.budget or entry.group.is_serving:
        return False
    settings = board.settings
    if now_us + settings.minimum_run_us + settings.leave_us > reservation.starts_us:
        return False
    return head.priority > entry.priority or (head.priority == entry.priority and settings.is_preempting_by_work)


def _leaves_room(board: Board, reservation: Reservation, placement: Placement, *, now_us: int) -> bool:
    asked = dict(placement)
    for name, needed in reservation.placement:
        if name not in asked:
            continue
        ending = sum(
            dict(each.placement)[name]
            for each in board.on_node[name].values()
            if max(each.frees_us, now_us) <= reservation.starts_us
        )
        if board.free[name] + ending - asked[name] < needed:
            return False
    return True


def _outranks_waiting(board: Board, entry: Entry, head: Entry, *, units: int) -> bool:
    """As `outranks`, between two groups that wait."""
    if head.priority != entry.priority or not board.settings.is_preempting_by_work:
        return entry.priority > head.priority
    own = (entry.remaining_us * entry.units // units + board.settings.restart_us) * units
    return own * board.settings.gain < head.remaining_us * head.units
