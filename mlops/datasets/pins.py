"""`datasets.dvc`: one `out` per dataset, each pinning a version; written by us in DVC's documented format.

`meta` of an out says our manifest's digest and a digest per column, so that a fresh clone without any object can say
what differs. Leaves to others: the objects behind a pin (dvc_store.py, version.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlops.datasets.manifest import verify_relpath
from mlops.errors import DatasetError
from mlops.files import write_atomically
from mlops.places import Places

_DIR_DIGEST = re.compile(r"[0-9a-f]{32}\.dir")


@dataclass(frozen=True)
class Pin:
    """One dataset's version as `datasets.dvc` says it."""

    name: str
    dvc_digest: str
    """`<md5>.dir`"""
    bytes: int
    files: int
    manifest: str
    """`sha256:…`; empty when another tool wrote the pin."""
    rows: int = 0
    writer: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column to the first 16 hex digits of the sha256 of its values."""


def load_pins(path: Path) -> dict[str, Pin]:
    """Every pinned dataset of the working tree, by name.

    Raises:
        DatasetError: The file is not one that DVC would read.
    """
    return parse_pins(path.read_text(encoding="utf-8") if path.is_file() else "", source=str(path))


def require_pin(places: Places, name: str) -> Pin:
    """The pinned version of a dataset.

    Raises:
        DatasetError: None is pinned; says what to do.
    """
    pins = load_pins(places.datasets_dvc)
    if name not in pins:
        has_recipe = (places.root / "datasets" / f"{name}.yaml").is_file()
        hint = f"run `mlops dataset import {name}`" if has_recipe else f"pinned datasets: {', '.join(pins) or 'none'}"
        raise DatasetError(f"datasets.dvc pins no version of dataset {name!r}", hint=hint)
    return pins[name]


def parse_pins(text: str, *, source: str) -> dict[str, Pin]:
    """Pins in the text of a `datasets.dvc`; outs outside `datasets/` are not ours.

    Raises:
        DatasetError: as `load_pins`.
    """
    outs = _parse_outs(text, source)
    return {pin.name: pin for out in outs if (pin := _parse_pin(out, source)) is not None}


def write_pin(path: Path, pin: Pin) -> None:
    """Put one pin into `datasets.dvc`, keeping all other outs as they are."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    outs = [out for out in _parse_outs(text, str(path)) if out.get("path") != f"datasets/{pin.name}"]
    outs.append(_render_out(pin))
    outs.sort(key=lambda out: str(out.get("path")))
    write_atomically(path, yaml.safe_dump({"outs": outs}, sort_keys=False, allow_unicode=True))


def parse_directory(content: bytes, *, source: str) -> dict[str, str]:
    """A `.dir` object: relpath to md5.

    Raises:
        DatasetError: Not a `.dir`, empty, or with paths that leave the dataset folder.
    """
    try:
        entries = {verify_relpath(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{source} is not a DVC directory object: {error}") from error
    if not entries:
        raise DatasetError(f"{source} lists no files", hint="an empty directory is never taken for a dataset")
    return entries


def render_directory(entries: Mapping[str, str]) -> bytes:
    """A `.dir` object as DVC writes it: its md5 is the dataset's DVC digest."""
    return json.dumps([{"md5": entries[path], "relpath": path} for path in sorted(entries)], sort_keys=True).encode()


def _parse_outs(text: str, source: str) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(text) or {}
        outs = content.get("outs") or []
        if not all(isinstance(out, dict) for out in outs):
            raise TypeError("`outs` is not a list of mappings")
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DatasetError(f"{source} is not a DVC file: {error}", hint="restore it from git") from error
    return list(outs)


def _parse_pin(out: dict[str, Any], source: str) -> Pin | None:
    folder, _, name = str(out.get("path", "")).rpartition("/")
    if folder != "datasets":
        return None
    digest = str(out.get("md5", ""))
    if not _DIR_DIGEST.fullmatch(digest):
        raise DatasetError(f"{source}: datasets/{name} pins {digest!r}, not the digest of a directory")
    meta = out.get("meta") or {}
    return Pin(
        name=name,
        dvc_digest=digest,
        bytes=int(out.get("size", 0)),
        files=int(out.get("nfiles", 0)),
        manifest=str(meta.get("manifest", "")),
        rows=int(meta.get("rows", 0)),
        writer=str(meta.get("writer", "")),
        columns=dict(meta.get("columns") or {}),
    )


def _render_out(pin: Pin) -> dict[str, Any]:
    return {
        "md5": pin.dvc_digest,
        "size": pin.bytes,
        "nfiles": pin.files,
        "hash": "md5",
        "path": f"datasets/{pin.name}",
        "meta": {
            "manifest": pin.manifest,
            "rows": pin.rows,
            "writer": pin.writer,
            "columns": dict(pin.columns),
        },
    }
