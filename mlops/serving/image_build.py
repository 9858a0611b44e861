"""Writing a serving image: its layers, each taken from the layout when its inputs did not change, then one manifest.

A layer's key is the digest of what goes into it and of the code that fills it; its record says which blob it made.
Leaves to others: filling layers (layers.py), tars (oci_tar.py), blobs and index (oci_layout.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import zstandard

from mlops.clock import render_time
from mlops.errors import ServingError
from mlops.files import write_atomically
from mlops.provenance.digest import canonical_json, digest_bytes, digest_code, digest_json, hex_of
from mlops.serving import layers
from mlops.serving.base_image import pull_base
from mlops.serving.candidate_files import read_model_files
from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import fetch_debian_packages, load_debian_lock
from mlops.serving.golden import answer_golden, make_golden_requests, render_golden
from mlops.serving.image import BuiltImage, BuiltLayer, ImageRequest
from mlops.serving.oci_buildah import assemble
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout, verify_blob
from mlops.serving.oci_tar import LAYER_TIME, ZSTD_LEVEL, Compression, Entry, LayerBlob, write_layer
from mlops.serving.python_wheels import LockedWheel, fetch_wheels, load_wheel_lock, parse_wheel_lock
from mlops.serving.runtime import IMAGE_GROUP_ID, IMAGE_USER_ID, SOCKET_NAME
from mlops.training.contract import Contract

CREATED = render_time(LAYER_TIME * 1_000_000)
ANNOTATION = "io.mlops."
"""Prefix of our labels and annotations."""
_ENVIRONMENT = {
    "HOST": "127.0.0.1",
    "MODELS": f"/{layers.MODELS}",
    "ORT_DISABLE_TELEMETRY": "1",
    "PATH": "/usr/bin",
    "PORT": "8080",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": f"/{layers.SITE_PACKAGES}:/{layers.APP}",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    "SOCKET": f"/run/mlops/{SOCKET_NAME}",
}
_FILLING = tuple(f"mlops.serving.{name}" for name in ("layers", "oci_tar", "debian_packages", "python_wheels"))
"""The code that decides a layer's bytes."""
_OPTIONAL_LAYERS = {
    "cuda": ("wheels-cuda12-cp311-x86_64.txt", layers.CUDA),
    "torch": ("wheels-torch-cp311-x86_64.txt", layers.TORCH),
}
"""Layer to its lock and its folder."""
_ENTRYPOINT = ["/usr/bin/python3.11", "-s", "-P", "-m", layers.SERVER_PACKAGE]


@dataclass(frozen=True)
class _Plan:
    """One layer before it exists."""

    name: str
    inputs: Mapping[str, str]
    """What its content depends on, name to digest or value."""
    fill: Callable[[], dict[str, Entry]]
    compression: Compression


def build(request: ImageRequest) -> BuiltImage:
    """See `mlops.serving.image.build_image`."""
    contract_blob, model = read_model_files(request)
    contract = Contract.from_json(json.loads(contract_blob))
    golden_requests = make_golden_requests(contract)
    answer_golden(request.candidate_folder, golden_requests, contract=contract)
    golden = canonical_json(render_golden(golden_requests, contract=contract))
    store = ContentStore(request.downloads)
    layout = ImageLayout(request.layout)
    base = _base_layers(request, layout=layout, store=store)
    plans = (
        *_wheel_plans(request, store=store),
        _Plan(
            name="app",
            inputs={"server": digest_code("mlops.serving.server")},
            fill=layers.app_entries,
            compression=request.spec.compression,
        ),
        _Plan(
            name="model",
            inputs={
                "product": request.product,
                "version": request.version,
                "model": digest_json({name: digest_bytes(content) for name, content in model.items()}),
                "contract": digest_bytes(contract_blob),
                "golden": digest_bytes(golden),
                "evidence": digest_json(dict(request.evidence)),
            },
            fill=lambda: layers.model_entries(
                product=request.product,
                version=request.version,
                model=model,
                contract=contract_blob,
                golden=golden,
                evidence=request.evidence,
            ),
            # Weights hardly shrink, and gzip takes 8 s for 300 MB of them.
            compression="none" if request.spec.compression == "gzip" else "zstd",
        ),
    )
    with ThreadPoolExecutor(max_workers=2) as threads:  # decompressing, hashing and compressing run beside Python
        making = [threads.submit(_build_layer, plan, layout=layout, request=request) for plan in (*base.plans, *plans)]
        built = (*base.pulled, *(layer.result() for layer in making))
    return _write_image(request, layout=layout, built=built, notes=base.notes)


def _wheel_plans(request: ImageRequest, *, store: ContentStore) -> tuple[_Plan, ...]:
    """`runtime`, which every image has, and what is asked for over it."""

    def plan(name: str, wheels: tuple[LockedWheel, ...], folder: str) -> _Plan:
        fetch_wheels(wheels, store=store, say=request.say)
        return _Plan(
            name=name,
            inputs={wheel.name: wheel.digest for wheel in wheels},
            fill=lambda: layers.wheel_entries(wheels, store=store, folder=folder),
            compression=request.spec.compression,
        )

    runtime = plan("runtime", load_wheel_lock(), layers.SITE_PACKAGES)
    more = []
    for name in (request.spec.accelerator, request.spec.runtime):
        if name in _OPTIONAL_LAYERS:
            lock, folder = _OPTIONAL_LAYERS[name]
            own = request.wheel_locks.get(name)
            wheels = load_wheel_lock(lock) if own is None else parse_wheel_lock(own.read_text("utf-8"))
            more.append(plan(name, wheels, folder))
    return (runtime, *more)


@dataclass(frozen=True)
class _Base:
    """What lies below our layers: a layer to be built of Debian packages, or layers of another image."""

    plans: tuple[_Plan, ...] = ()
    pulled: tuple[BuiltLayer, ...] = ()
    notes: tuple[str, ...] = ()


def _base_layers(request: ImageRequest, *, layout: ImageLayout, store: ContentStore) -> _Base:
    if request.spec.base != "debian":
        return _Base(pulled=pull_base(request.spec.base, layout=layout, say=request.say))
    packages = fetch_debian_packages(load_debian_lock(), store=store, cache=request.cache, say=request.say)
    plan = _Plan(
        name="base",
        inputs={package.name: package.digest for package in packages.packages},
        fill=lambda: layers.base_entries(packages.packages, store=store),
        compression=request.spec.compression,
    )
    return _Base(plans=(plan,), notes=packages.notes)


def _build_layer(plan: _Plan, *, layout: ImageLayout, request: ImageRequest) -> BuiltLayer:
    code = digest_code(*_FILLING)
    packer = f"{plan.compression}-{ZSTD_LEVEL}-{zstandard.__version__}-{zstandard.ZSTD_VERSION}"
    inputs = {**plan.inputs, "(code)": code, "(compression)": packer}
    record = request.cache / "serving" / "layers" / plan.name / f"{hex_of(digest_json(inputs))}.json"
    known = _read_record(record, layout)
    if known is not None:
        return _built(plan, known, is_reused=True, reason="nothing that goes into it changed")
    previous = record.parent / "last.json"
    reason = _explain_change(previous, inputs)
    if plan.name in ("base", "runtime", *_OPTIONAL_LAYERS):
        request.say(f"writing layer {plan.name}")
    with layout.new_blob() as (stream, names):
        blob = write_layer(plan.fill(), stream, compression=plan.compression)
        names.append(blob.digest)
    write_atomically(record, canonical_json(asdict(blob)))
    write_atomically(previous, canonical_json(inputs))
    return _built(plan, blob, is_reused=False, reason=reason)


def _read_record(record: Any, layout: ImageLayout) -> LayerBlob | None:
    try:
        blob = LayerBlob(**json.loads(record.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    try:
        verify_blob(layout, blob.digest)  # 40 ms for all layers; a damaged one is written anew
    except ServingError:
        return None
    layout.blob_path(blob.digest).touch()  # so that a prune at the same time takes it for new
    return blob


def _explain_change(previous: Any, inputs: Mapping[str, str]) -> str:
    try:
        old = json.loads(previous.read_bytes())
    except (OSError, ValueError):
        return "first build here"
    changed = sorted(name for name in {*old, *inputs} if old.get(name) != inputs.get(name))
    return f"changed: {', '.join(changed)}" if changed else "its blob was missing or damaged"


def _built(plan: _Plan, blob: LayerBlob, *, is_reused: bool, reason: str) -> BuiltLayer:
    return BuiltLayer(
        name=plan.name,
        digest=blob.digest,
        diff_id=blob.diff_id,
        compressed_bytes=blob.compressed_bytes,
        media_type=blob.media_type,
        is_reused=is_reused,
        reason=reason,
    )


def _write_image(
    request: ImageRequest, *, layout: ImageLayout, built: tuple[BuiltLayer, ...], notes: tuple[str, ...]
) -> BuiltImage:
    reference = f"{request.product}:{request.version}"
    digest, layers = _ASSEMBLERS[request.spec.builder](request, layout, built, reference)
    return BuiltImage(
        digest=digest, reference=reference, layers=layers, compressed_bytes=layout.size_of(digest), notes=notes
    )


def _assemble(
    request: ImageRequest, layout: ImageLayout, built: tuple[BuiltLayer, ...], reference: str
) -> tuple[str, tuple[BuiltLayer, ...]]:
    """Our own manifest over our own layers, named in the index."""
    labels = _labels(request)
    config = canonical_json(_config(request, built=built, labels=labels))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": layout.add_blob(config), "size": len(config)},
        "layers": [
            {
                "mediaType": layer.media_type,
                "digest": layer.digest,
                "size": layer.compressed_bytes,
                "annotations": {f"{ANNOTATION}layer": layer.name},
            }
            for layer in built
        ],
        "annotations": labels,
    }
    return layout.put_image(manifest, reference=reference, annotations={}), built


def _assemble_with_buildah(
    request: ImageRequest, layout: ImageLayout, built: tuple[BuiltLayer, ...], reference: str
) -> tuple[str, tuple[BuiltLayer, ...]]:
    request.say("assembling with buildah")
    labels = _labels(request)
    config = _config(request, built=built, labels=labels)["config"]
    cache = request.cache / "serving"
    digest, layers = assemble(built, layout=layout, config=config, annotations=labels, cache=cache)
    layout.name_image(digest, reference=reference, size=len(layout.read_blob(digest)))
    return digest, layers


_ASSEMBLERS = {"mlops": _assemble, "buildah": _assemble_with_buildah}


def _labels(request: ImageRequest) -> dict[str, str]:
    return {
        "org.opencontainers.image.title": request.product,
        "org.opencontainers.image.version": request.version,
        "org.opencontainers.image.created": CREATED,
        f"{ANNOTATION}health": "/v2/health/ready",
        f"{ANNOTATION}product": request.product,
        **{f"{ANNOTATION}evidence.{name}": digest for name, digest in sorted(request.evidence.items())},
    }


def _config(request: ImageRequest, *, built: tuple[BuiltLayer, ...], labels: Mapping[str, str]) -> dict[str, Any]:
    environment = {**request.spec.environment, **_ENVIRONMENT}
    if request.spec.accelerator == "cuda":
        environment["PYTHONPATH"] = f"/{layers.CUDA}:{environment['PYTHONPATH']}"
    if request.spec.runtime == "torch":
        environment["PYTHONPATH"] += f":/{layers.TORCH}"
    return {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": f"{IMAGE_USER_ID}:{IMAGE_GROUP_ID}",
            "ExposedPorts": {"8080/tcp": {}},
            "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
            "Entrypoint": _ENTRYPOINT,
            "WorkingDir": "/",
            "StopSignal": "SIGTERM",
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in built]},
        "history": [{"created": CREATED, "created_by": f"mlops image build: {layer.name}"} for layer in built],
    }
