"""The cluster of one sweep as a file: a KubeRay RayCluster, or what `ray up` reads; checked against schemas kept here.

The schemas (ray_cluster_schemas.json) hold the fields used here and no others, after KubeRay 1.4 (ray.io/v1) and the
schema that Ray 2.60 ships. Leaves to others: starting and ending it (mlops/training/ray_ephemeral).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from mlops.errors import ProjectError
from mlops.provenance.digest import hex_of
from mlops.training.spec import EphemeralCluster, SweepSpec

Kind = Literal["kuberay", "ray-up"]
CLIENT_PORT = 10001
_GIB_PER_CPU = 4
_TPU = "google.com/tpu"


@dataclass(frozen=True)
class NodePlan:
    """The machines of a sweep; those of one worker group come and go together."""

    groups: int
    nodes_per_group: int
    kind: str
    accelerators_per_node: int

    @property
    def accelerators(self) -> int:
        """Of all machines: what is paid for."""
        return self.groups * self.nodes_per_group * self.accelerators_per_node

    def to_resources(self) -> dict[str, int]:
        """What one machine offers to Ray, by Ray's names."""
        if self.kind == "cpu":
            return {"CPU": self.accelerators_per_node}
        name = self.kind if self.kind.startswith("tpu") else "GPU"
        return {"CPU": 2 * self.accelerators_per_node, name: self.accelerators_per_node}


def plan_nodes(spec: SweepSpec) -> NodePlan:
    """The machines for all groups of a sweep: a group on one machine where it fits, and a TPU slice whole.

    Raises:
        ProjectError: One worker is larger than a machine.
    """
    cluster = cluster_of(spec)
    each = spec.accelerators.count
    if spec.accelerators.kind.startswith("tpu"):  # one worker a host, all hosts of the slice in one replica
        return NodePlan(spec.groups, spec.workers, spec.accelerators.kind, math.ceil(each))
    fitting = int(cluster.node_accelerators / each)
    if fitting < 1:
        raise ProjectError(
            f"a worker needs {spec.accelerators}, a machine has {cluster.node_accelerators}",
            hint=f"raise `ephemeral.node_accelerators` or lower `accelerators` in training/{spec.product}.yaml",
        )
    nodes = math.ceil(spec.workers / fitting)
    per_node = math.ceil(math.ceil(spec.workers / nodes) * each)
    return NodePlan(spec.groups, nodes, spec.accelerators.kind, per_node)


def cluster_of(spec: SweepSpec) -> EphemeralCluster:
    """What the spec says about its own cluster.

    Raises:
        ProjectError: Nothing.
    """
    if spec.ephemeral is None:
        raise ProjectError(
            f"training/{spec.product}.yaml says nothing about a cluster of its own",
            hint="add `ephemeral: {image: NAME@sha256:…}`; docs/sweeps.md has an example",
        )
    return spec.ephemeral


def render_cluster(spec: SweepSpec, *, kind: Kind, name: str, lock: str) -> dict[str, Any]:
    """The file of a cluster, checked.

    Args:
        spec: Of the sweep.
        kind: For whom.
        name: Of the cluster.
        lock: Digest of the lock that its environment must have.

    Raises:
        ProjectError: It does not fit its schema; `items` says where.
    """
    content = _RENDERERS[kind](spec, name, lock)
    verify_cluster(content, kind=kind)
    return content


def verify_cluster(content: dict[str, Any], *, kind: Kind) -> None:
    """Check a file of a cluster against its schema.

    Raises:
        ProjectError: It does not fit; `items` says where.
    """
    import jsonschema  # loads a grammar, which costs a second

    text = resources.files("mlops.training").joinpath("ray_cluster_schemas.json").read_text("utf-8")
    errors = jsonschema.Draft7Validator(json.loads(text)[kind]).iter_errors(content)
    items = tuple(f"{'.'.join(map(str, error.path)) or '(file)'}: {error.message}" for error in errors)
    if items:
        raise ProjectError(f"the {kind} file of a cluster does not fit its schema", items=tuple(sorted(items)))


def _render_kuberay(spec: SweepSpec, name: str, lock: str) -> dict[str, Any]:
    cluster, plan = cluster_of(spec), plan_nodes(spec)
    labels = {"app.kubernetes.io/managed-by": "mlops", "mlops/product": spec.product, "mlops/lock": hex_of(lock)[:12]}
    offered = plan.to_resources()
    own = {key: value for key, value in offered.items() if key not in ("CPU", "GPU")}
    start = {"num-cpus": str(offered["CPU"]), **({"resources": _quote(own)} if own else {})}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": labels,
            "annotations": {"mlops/lock-digest": lock, "mlops/budget": spec.budget},
        },
        "spec": {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"idleTimeoutSeconds": round(cluster.idle)},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},  # no worker of a trial runs beside the head
                "template": _pod(cluster.image, {"cpu": cluster.head_cpus}, selector={}, name="head"),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": plan.groups,
                    "minReplicas": 0,
                    "maxReplicas": plan.groups,
                    "numOfHosts": plan.nodes_per_group,
                    "rayStartParams": start,
                    "template": _pod(cluster.image, _limits(plan), selector=cluster.node_selector, name="worker"),
                }
            ],
        },
    }


def _render_ray_up(spec: SweepSpec, name: str, lock: str) -> dict[str, Any]:
    cluster, plan = cluster_of(spec), plan_nodes(spec)
    nodes = plan.groups * plan.nodes_per_group
    worker = {"resources": plan.to_resources(), "min_workers": nodes, "max_workers": nodes}
    return {
        "cluster_name": name,
        "max_workers": nodes,
        "idle_timeout_minutes": max(1, round(cluster.idle / 60)),
        "provider": cluster.provider or {"type": "aws", "region": "eu-central-1"},
        "auth": {"ssh_user": cluster.ssh_user},
        "docker": {"image": cluster.image, "container_name": "mlops", "pull_before_run": True},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": cluster.head_config},
            "workers": {**worker, "node_config": cluster.node_config, "labels": {"mlops-lock": hex_of(lock)[:12]}},
        },
        "head_node_type": "head",
    }


def _pod(image: str, limits: dict[str, int], *, selector: dict[str, str], name: str) -> dict[str, Any]:
    shown = {key: str(value) for key, value in limits.items()}
    shown["memory"] = f"{_GIB_PER_CPU * limits['cpu']}Gi"
    container = {"name": f"ray-{name}", "image": image, "resources": {"limits": shown, "requests": shown}}
    return {"spec": {**({"nodeSelector": selector} if selector else {}), "containers": [container]}}


def _limits(plan: NodePlan) -> dict[str, int]:
    if plan.kind == "cpu":
        return {"cpu": plan.accelerators_per_node}
    name = _TPU if plan.kind.startswith("tpu") else "nvidia.com/gpu"
    return {"cpu": 2 * plan.accelerators_per_node, name: plan.accelerators_per_node}


def _quote(own: dict[str, int]) -> str:
    """A shell reads it before Ray does."""
    return json.dumps(json.dumps(own))


_RENDERERS: dict[Kind, Callable[[SweepSpec, str, str], dict[str, Any]]] = {
    "kuberay": _render_kuberay,
    "ray-up": _render_ray_up,
}
