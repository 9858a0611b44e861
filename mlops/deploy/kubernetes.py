"""The same desired state as Kubernetes manifests: plain (Deployment and Service) or KServe (InferenceService).

Images stand by digest, never by tag. Each manifest is checked against the schemas in kubernetes_schemas.json: the
fields used here, after Kubernetes 1.29 (apps/v1, v1) and KServe 0.15 (serving.kserve.io/v1beta1), and no others.
Leaves to others: applying them (Argo CD, Flux, kubectl) and pushing images (`mlops image push`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, Literal

import yaml

from mlops.deploy.desired_state import DesiredState, ReleaseSet, ServedVersion
from mlops.deploy.environment import EnvironmentSpec
from mlops.errors import ServingError
from mlops.serving.runtime import IMAGE_GROUP_ID, IMAGE_USER_ID

Kind = Literal["plain", "kserve"]
Manifest = dict[str, Any]
_PORT = 8080
_LEAVING_SECONDS = 5
"""A pod that ends goes on accepting for so long: until then the cluster still sends it requests."""
_SPARE_SECONDS = 5
"""Between the end of its requests and the kill."""
_REPLICAS = 4
"""Pods of a product in plain manifests; shares are rounded to whole pods, one at least."""


def render_manifests(state: DesiredState, rules: EnvironmentSpec, *, kind: str, registry: str) -> tuple[Manifest, ...]:
    """Manifests of everything that should serve, checked.

    Args:
        state: Desired state.
        rules: Of the same environment: resources, drain time.
        kind: `plain` or `kserve`.
        registry: Where the cluster pulls `<product>@sha256:…` from.

    Raises:
        ServingError: A manifest does not fit its schema; a bug, or a name that Kubernetes does not take.
    """
    render = _RENDERERS[kind]
    manifests = tuple(
        manifest for release in state.products for manifest in render(release, state.environment, rules, registry)
    )
    for manifest in manifests:
        verify_manifest(manifest)
    return manifests


def verify_manifest(manifest: Manifest) -> None:
    """Check one manifest against the schema of its kind.

    Raises:
        ServingError: It does not fit; `items` lists where.
    """
    import jsonschema  # loads a grammar, which costs a second

    schemas = json.loads(resources.files("mlops.deploy").joinpath("kubernetes_schemas.json").read_text("utf-8"))
    name = f"{manifest.get('apiVersion')}/{manifest.get('kind')}"
    if name not in schemas["kinds"]:
        raise ServingError(f"there is no schema for {name}")
    schema = {**schemas["kinds"][name], "definitions": schemas["definitions"]}
    errors = sorted(
        jsonschema.Draft7Validator(schema).iter_errors(manifest), key=lambda error: list(map(str, error.path))
    )
    if errors:
        items = tuple(f"{'.'.join(map(str, error.path)) or '(manifest)'}: {error.message}" for error in errors)
        raise ServingError(f"the manifest {name} does not fit its schema", items=items)


def render_yaml(manifests: Sequence[Manifest]) -> str:
    """All manifests as one YAML stream."""
    return yaml.safe_dump_all(manifests, sort_keys=False, explicit_start=True, width=120)


def _render_plain(release: ReleaseSet, environment: str, rules: EnvironmentSpec, registry: str) -> Iterator[Manifest]:
    for version in release.versions:
        labels = _labels(release, version, environment)
        selector = {"app.kubernetes.io/name": release.product, "mlops/version": str(version.number)}
        yield {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": f"{release.product}-{version.number}",
                "namespace": environment,
                "labels": labels,
                "annotations": _annotations(release, version),
            },
            "spec": {
                "replicas": max(1, round(_REPLICAS * version.share / 100)),
                "selector": {"matchLabels": selector},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": {**labels}}, "spec": _pod(release, version, rules, registry)},
            },
        }
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": release.product,
            "namespace": environment,
            "labels": {"app.kubernetes.io/name": release.product},
        },
        "spec": {
            "selector": {"app.kubernetes.io/name": release.product},
            "ports": [{"name": "http", "port": 80, "targetPort": _PORT, "protocol": "TCP"}],
        },
    }


def _render_kserve(release: ReleaseSet, environment: str, rules: EnvironmentSpec, registry: str) -> Iterator[Manifest]:
    """The newest version; KServe itself keeps the one before for the rest of the traffic."""
    version = release.versions[0]
    predictor: dict[str, Any] = {"minReplicas": 1, "maxReplicas": _REPLICAS, **_pod(release, version, rules, registry)}
    if version.share < 100:
        predictor["canaryTrafficPercent"] = version.share
    yield {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": release.product,
            "namespace": environment,
            "labels": _labels(release, version, environment),
            "annotations": _annotations(release, version),
        },
        "spec": {"predictor": predictor},
    }


_RENDERERS: dict[str, Callable[[ReleaseSet, str, EnvironmentSpec, str], Iterator[Manifest]]] = {
    "plain": _render_plain,
    "kserve": _render_kserve,
}


def _labels(release: ReleaseSet, version: ServedVersion, environment: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": release.product,
        "app.kubernetes.io/managed-by": "mlops",
        "mlops/environment": environment,
        "mlops/version": str(version.number),
    }


def _annotations(release: ReleaseSet, version: ServedVersion) -> dict[str, str]:
    return {"mlops/image": version.image, "mlops/candidate": version.candidate, "mlops/release-set": release.digest}


def _pod(release: ReleaseSet, version: ServedVersion, rules: EnvironmentSpec, registry: str) -> dict[str, Any]:
    drain = max(1, round(rules.traffic.drain))
    limits = {"cpu": f"{round(rules.resources.cpus * 1000)}m", "memory": str(rules.resources.memory)}
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _LEAVING_SECONDS + drain + _SPARE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": IMAGE_USER_ID,
            "runAsGroup": IMAGE_GROUP_ID,
            "fsGroup": IMAGE_GROUP_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "kserve-container",
                "image": f"{registry}/{release.product}@{version.image}",
                "env": [
                    {"name": "HOST", "value": "0.0.0.0"},  # noqa: S104 - in a pod
                    {"name": "PORT", "value": str(_PORT)},
                    {"name": "DRAIN_SECONDS", "value": str(_LEAVING_SECONDS)},
                    {"name": "STOP_TIMEOUT_SECONDS", "value": str(drain)},
                ],
                "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
                "readinessProbe": _probe("/v2/health/ready", rules),
                "livenessProbe": _probe("/v2/health/live", rules),
                "resources": {"requests": {**limits}, "limits": {**limits}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "sockets", "mountPath": "/run/mlops"},
                    {"name": "temporary", "mountPath": "/tmp"},  # noqa: S108 - in a pod
                ],
            }
        ],
        "volumes": [{"name": "sockets", "emptyDir": {}}, {"name": "temporary", "emptyDir": {"sizeLimit": "64Mi"}}],
    }


def _probe(path: str, rules: EnvironmentSpec) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": _PORT},
        "periodSeconds": max(1, round(rules.health.interval)),
        "failureThreshold": rules.health.failures,
    }
