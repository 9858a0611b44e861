"""Which nodes a group takes: no larger than a node on one node by best fit, larger ones on whole nodes, all or nothing.

Leaves to others: whether it may (`quota`), whose units to free (`preemption`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlops.budgets.state import Node, Placement


def find_placement(
    nodes: Mapping[str, Node], free: Mapping[str, int], names: Iterable[str], units: int
) -> Placement | None:
    """Nodes for `units`; None when they do not fit.

    Args:
        nodes: Every node by name.
        free: Free units by node; a draining node has none.
        names: Nodes of the right kind, in a fixed order.
        units: What is asked.
    """
    best = ""
    best_left = -1
    whole: list[tuple[int, str]] = []
    for name in names:
        left = free[name] - units
        if left >= 0 and (best_left < 0 or left < best_left):
            best, best_left = name, left
            if left == 0:
                break
        if free[name] == nodes[name].units:
            whole.append((free[name], name))
    if best_left >= 0:
        return ((best, units),)
    return _find_whole_nodes(free, names, whole, units) if whole else None


def _find_whole_nodes(
    free: Mapping[str, int], names: Iterable[str], whole: list[tuple[int, str]], units: int
) -> Placement | None:
    whole.sort(key=lambda pair: (-pair[0], pair[1]))
    chosen: list[tuple[str, int]] = []
    rest = units
    for size, name in whole:
        if rest < size:
            break
        chosen.append((name, size))
        rest -= size
    if rest and chosen:
        taken = {name for name, _ in chosen}
        fitting = [(free[name], name) for name in names if name not in taken and free[name] >= rest]
        if not fitting:
            return None
        chosen.append((min(fitting)[1], rest))
        rest = 0
    return tuple(sorted(chosen)) if chosen and not rest else None


def fits_empty(nodes: Mapping[str, Node], names: Iterable[str], units: int) -> bool:
    """Whether `units` would fit if nothing ran."""
    usable = [name for name in names if not nodes[name].is_draining]
    return find_placement(nodes, {name: nodes[name].units for name in usable}, usable, units) is not None
