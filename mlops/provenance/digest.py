"""Digests name everything here: `sha256:<64 hex>` over bytes, files, folders and canonical JSON.

Leaves to others: what is put into a digest.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")


def digest_bytes(content: bytes) -> str:
    """`sha256:<hex>` of bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_file(path: Path) -> str:
    """`sha256:<hex>` of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8, no NaN.

    Floats are spelled as Python spells them (shortest round trip), which is stable over versions since 3.1.

    Raises:
        ValueError: NaN or infinity.
        TypeError: Not JSON.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest_json(value: Any) -> str:
    """`sha256:<hex>` of canonical JSON."""
    return digest_bytes(canonical_json(value))


def digest_folder(folder: Path, pattern: str = "**/*") -> str:
    """Digest of the files below `folder` that match: relative names and contents, not times or rights."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and "__pycache__" not in path.parts)
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


def digest_code(*packages: str) -> str:
    """Digest of the source of packages or modules of `mlops`, found without importing them.

    A step's memo key holds the code that runs in it and no more, so that editing the server does not retrain.
    """
    found: dict[str, str] = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"no source for {name}")
        origin = Path(spec.origin)
        found[name] = digest_folder(origin.parent, "**/*.py") if origin.name == "__init__.py" else digest_file(origin)
    return digest_json(found)


def digest_inputs(inputs: Mapping[str, str]) -> str:
    """Memo key of a step: digest of its named input digests."""
    return digest_json(dict(inputs))


def hex_of(digest: str) -> str:
    """The 64 hex digits of `sha256:<hex>`.

    Raises:
        ValueError: Not a digest.
    """
    if not DIGEST_PATTERN.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a digest of the form sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")
