"""Assembling an image with buildah, where a platform asks for its own builder: the one door to buildah.

buildah is given the content of the layers that we filled, and writes layers, configuration and manifest itself. Every
file of the result is compared with what was given. Its bytes differ from ours, so the digest does too, and repeats only
with the same version of buildah; its stores are folders of the build and end with it.
Leaves to others: filling layers (layers.py), our own writer (image_build.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlops.errors import EnvironmentFault, ServingError
from mlops.serving.image import BuiltLayer
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.oci_tar import LAYER_TIME, ZSTD_LEVEL
from mlops.serving.oci_unpack import layer_members, open_layer

_CALL_SECONDS = 600
_SHOWN = 5

FileTree = dict[str, tuple[Any, ...]]
"""Path to kind, mode, owner, group, and the digest of the content or the target of a link."""


@dataclass(frozen=True)
class _Buildah:
    """buildah with stores in one folder."""

    scratch: Path

    def call(self, *arguments: str) -> str:
        """Run one command; returns what it printed.

        Raises:
            EnvironmentFault: buildah is not installed, or hangs.
            ServingError: It failed.
        """
        folder = self.scratch
        # vfs works for every user on every file system, and one driver gives one digest.
        stores = ("--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "HOME": f"{folder}/home",
            "TMPDIR": str(folder),
            **{f"XDG_{name}": f"{folder}/{name.lower()}" for name in ("DATA_HOME", "CONFIG_HOME", "RUNTIME_DIR")},
        }
        try:
            done = subprocess.run(
                ["buildah", *stores, *arguments],
                capture_output=True, text=True, check=False, timeout=_CALL_SECONDS, env=environment, cwd=folder,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise EnvironmentFault(
                "`builder: buildah` is asked for, and buildah is not installed",
                hint="run `apt-get install buildah`, or leave `builder` out of deploy/<product>.yaml",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(f"buildah {arguments[0]} did not end within {_CALL_SECONDS} s") from error
        if done.returncode:
            raise ServingError(f"buildah {arguments[0]} failed: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()


def assemble(
    layers: Sequence[BuiltLayer],
    *,
    layout: ImageLayout,
    config: Mapping[str, Any],
    annotations: Mapping[str, str],
    cache: Path,
) -> tuple[str, tuple[BuiltLayer, ...]]:
    """Have buildah make the image; returns the digest of its manifest and its layers, all stored in the layout.

    Args:
        layers: Ours, whose blobs are in the layout.
        layout: Where blobs are read from and written to; the index is left alone.
        config: The `config` part of an image's configuration.
        annotations: Of the manifest.
        cache: Where buildah's stores may lie meanwhile.

    Raises:
        EnvironmentFault: buildah is not installed.
        ServingError: buildah fails, or its image holds other files than it was given.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="buildah-", dir=cache, ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        buildah = _Buildah(scratch)
        try:
            image = _commit_layers(buildah, layers, layout=layout, config=config, annotations=annotations)
            is_gzip = any(layer.media_type.endswith("gzip") for layer in layers)
            packing = ("gzip",) if is_gzip else ("zstd", "--compression-level", str(ZSTD_LEVEL))
            target = scratch / "out"
            buildah.call("push", "--quiet", "--format", "oci", "--compression-format", *packing, image, f"oci:{target}")
            return _adopt(ImageLayout(target), layout=layout, layers=layers)
        finally:
            if (scratch / "root").exists():  # files of mapped users can be removed by buildah alone
                buildah.call("rm", "--all")
                buildah.call("rmi", "--all", "--force")


def _commit_layers(
    buildah: _Buildah,
    layers: Sequence[BuiltLayer],
    *,
    layout: ImageLayout,
    config: Mapping[str, Any],
    annotations: Mapping[str, str],
) -> str:
    """One commit per layer, so that a changed model is pushed alone; returns the last image."""
    image = "scratch"
    tar = buildah.scratch / "layer.tar"
    for number, layer in enumerate(layers):
        container = buildah.call("from", "--pull-never", image)
        with open_layer(layout.blob_path(layer.digest), media_type=layer.media_type) as source, tar.open("wb") as out:
            shutil.copyfileobj(source, out)
        buildah.call("add", "--quiet", container, str(tar), "/")
        buildah.call("config", "--created-by", f"mlops image build: {layer.name}", container)
        if number == len(layers) - 1:
            buildah.call("config", *_config_flags(config, annotations), container)
        image = f"localhost/layer:{number}"
        buildah.call(
            "commit", "--quiet", "--rm", "--format", "oci", "--timestamp", str(LAYER_TIME), container, image
        )  # fmt: skip
    tar.unlink()
    return image


def _config_flags(config: Mapping[str, Any], annotations: Mapping[str, str]) -> list[str]:
    flags = ["--arch", "amd64", "--os", "linux", "--user", config["User"], "--workingdir", config["WorkingDir"]]
    flags += ["--entrypoint", json.dumps(config["Entrypoint"]), "--stop-signal", config["StopSignal"]]
    flags += [part for port in config["ExposedPorts"] for part in ("--port", port)]
    flags += [part for line in config["Env"] for part in ("--env", line)]
    flags += [part for name, value in config["Labels"].items() for part in ("--label", f"{name}={value}")]
    # buildah would name the image below by a name and digest of this build's own store
    hidden = {f"org.opencontainers.image.base.{name}": "" for name in ("name", "digest")}
    given = {**hidden, **annotations}
    return flags + [part for name, value in given.items() for part in ("--annotation", f"{name}={value}")]


def _adopt(
    made: ImageLayout, *, layout: ImageLayout, layers: Sequence[BuiltLayer]
) -> tuple[str, tuple[BuiltLayer, ...]]:
    """Compare what buildah wrote with what it was given, then bring its blobs over."""
    (image,) = made.images()
    manifest = made.read_manifest(image.digest)
    configuration = json.loads(made.read_blob(manifest["config"]["digest"]))
    ours = read_tree(layout, [(layer.digest, layer.media_type) for layer in layers])
    theirs = read_tree(made, [(layer["digest"], layer["mediaType"]) for layer in manifest["layers"]])
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different or len(manifest["layers"]) != len(layers):
        raise ServingError(
            f"buildah made an image that differs in {len(different)} files from what it was given",
            items=tuple(different[:_SHOWN]),
            hint="leave `builder` out of deploy/<product>.yaml, and report this with the version of buildah",
        )
    for part in (manifest["config"], *manifest["layers"]):
        with made.blob_path(part["digest"]).open("rb") as source, layout.new_blob() as (stream, names):
            shutil.copyfileobj(source, stream)
            names.append(part["digest"])
    layout.add_blob(made.read_blob(image.digest))
    parts = zip(layers, manifest["layers"], configuration["rootfs"]["diff_ids"], strict=True)
    return image.digest, tuple(
        replace(layer, digest=part["digest"], diff_id=diff, compressed_bytes=part["size"], media_type=part["mediaType"])
        for layer, part, diff in parts
    )


def read_tree(layout: ImageLayout, layers: Sequence[tuple[str, str]]) -> FileTree:
    """Everything in a stack of layers, later ones over earlier ones; times are left out."""
    tree: FileTree = {}
    for digest, media_type in layers:
        with open_layer(layout.blob_path(digest), media_type=media_type) as stream:
            for tar, member in layer_members(stream):
                name = member.name.removeprefix("./").strip("/")
                content = tar.extractfile(member) if member.isreg() else None
                what = member.linkname if content is None else hashlib.sha256(content.read()).hexdigest()
                mode = (
                    0o777 if member.issym() else member.mode & 0o7777
                )  # a link has no mode of its own; Go adds the kind
                if name not in ("", "."):
                    tree[name] = (member.type, mode, member.uid, member.gid, what)
    return tree
