"""What Ray says about its nodes: what they have, which are drained, and whether a worker was lost with its node.

The list of draining nodes is private to Ray: where it cannot be had there is no early notice, and the death of the
workers is the notice. Leaves to others: what follows (mlops/training/sweep_driver).
"""

from __future__ import annotations

import contextlib
import time

import ray

from mlops.budgets.money import to_milli
from mlops.budgets.state import Node


def find_draining_nodes() -> dict[str, float]:
    """Node id to the seconds that are left to it."""
    with contextlib.suppress(Exception):  # private: any release of Ray may move it
        found = ray._private.state.state.get_draining_nodes()
        return {str(node): _seconds_left(deadline_ms) for node, deadline_ms in found.items()}
    return {}


def list_nodes(kind: str) -> tuple[Node, ...]:
    """Machines of the connected cluster with accelerators of a kind, and how many each has.

    CPUs are `cpu`; a TPU slice is the resource of its name; another kind is a GPU of that `accelerator_type`, or one
    whose type the cluster does not know.
    """
    found = []
    for each in ray.nodes():
        resources = each["Resources"]
        if not each["Alive"]:
            continue
        typed = {name.partition(":")[2].lower() for name in resources if name.startswith("accelerator_type:")}
        if kind == "cpu":
            count = resources.get("CPU", 0.0)
        elif kind.startswith("tpu"):
            count = resources.get(kind, 0.0)
        else:
            count = resources.get("GPU", 0.0) if not typed or kind.lower() in typed else 0.0
        if count:
            found.append(Node(f"{each['NodeManagerHostname']}:{each['NodeManagerPort']}/{kind}", kind, to_milli(count)))
    return tuple(found)


def is_node_loss(error: Exception) -> bool:
    """Whether a worker died because its machine went away, which is nobody's failure."""
    said = str(error).lower()
    return bool(getattr(error, "preempted", False)) or "node has died" in said or "node is terminated" in said


def _seconds_left(deadline_ms: int) -> float:
    """A deadline of 0 means that none was named."""
    return max(0.0, deadline_ms / 1000 - time.time()) if deadline_ms else 30.0
