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

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DIR_DIGEST = re.compile(r"[0-9a-f]{32}\.dir")


@dataclass(frozen=True)
class Pin:
    """One out of a DVC file: the version of a dataset or of a partition."""

    path: str
    """As the DVC file says it, relative to that file."""
    dvc_digest: str
    """`<md5>.dir`"""
    bytes: int
    files: int
    manifest: str
    """`sha256:…`; empty when another tool wrote the pin."""
    rows: int = 0
    schema: str = ""
    """First 16 hex digits of the digest of `dataset.yaml`."""
    writer: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column to the first 16 hex digits of its digest in the manifest."""


def load_pins(path: Path) -> dict[str, Pin]:
    """Every dataset or partition that a DVC file pins, by the last part of the out's path.

    Raises:
        DatasetError: The file is not one that DVC would read.
    """
    return parse_pins(path.read_text(encoding="utf-8") if path.is_file() else "", source=str(path))


def parse_pins(text: str, *, source: str) -> dict[str, Pin]:
    """Pins in the text of a DVC file; outs that are no directories are not ours.

    Raises:
        DatasetError: as `load_pins`.
    """
    outs = _parse_outs(text, source)
    return {pin.path.rpartition("/")[2]: pin for out in outs if (pin := _parse_pin(out, source)) is not None}


def write_pin(path: Path, pin: Pin) -> None:
    """Put one pin into a DVC file, keeping all other outs as they are."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    outs = [out for out in _parse_outs(text, str(path)) if out.get("path") != pin.path]
    outs.append(_render_out(pin))
    outs.sort(key=lambda out: str(out.get("path")))
    write_atomically(path, yaml.safe_dump({"outs": outs}, sort_keys=False, allow_unicode=True))


def remove_pin(path: Path, out_path: str) -> None:
    """Take one out from a DVC file, keeping all others as they are."""
    outs = _parse_outs(path.read_text(encoding="utf-8") if path.is_file() else "", str(path))
    kept = [out for out in outs if out.get("path") != out_path]
    if len(kept) != len(outs):
        write_atomically(path, yaml.safe_dump({"outs": kept}, sort_keys=False, allow_unicode=True))


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
        content = yaml.load(text, Loader=_LOADER) or {}  # noqa: S506 - the C spelling of SafeLoader
        outs = content.get("outs") or []
        if not all(isinstance(out, dict) for out in outs):
            raise TypeError("`outs` is not a list of mappings")
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DatasetError(f"{source} is not a DVC file: {error}", hint="restore it from git") from error
    return list(outs)


def _parse_pin(out: dict[str, Any], source: str) -> Pin | None:
    path, digest = str(out.get("path", "")), str(out.get("md5", ""))
    if not (path.startswith("datasets/") or digest.endswith(".dir")):
        return None
    if not _DIR_DIGEST.fullmatch(digest):
        raise DatasetError(f"{source}: {path} pins {digest!r}, not the digest of a directory")
    meta = out.get("meta") or {}
    return Pin(
        path=path,
        dvc_digest=digest,
        bytes=int(out.get("size", 0)),
        files=int(out.get("nfiles", 0)),
        manifest=str(meta.get("manifest", "")),
        rows=int(meta.get("rows", 0)),
        schema=str(meta.get("schema", "")),
        writer=str(meta.get("writer", "")),
        columns=dict(meta.get("columns") or {}),
    )


def _render_out(pin: Pin) -> dict[str, Any]:
    return {
        "md5": pin.dvc_digest,
        "size": pin.bytes,
        "nfiles": pin.files,
        "hash": "md5",
        "path": pin.path,
        "meta": {
            "manifest": pin.manifest,
            "rows": pin.rows,
            "schema": pin.schema,
            "writer": pin.writer,
            "columns": dict(pin.columns),
        },
    }
