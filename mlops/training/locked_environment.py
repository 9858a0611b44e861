"""Whether a worker runs in the locked environment: what is installed there against the lock file of the driver.

Leaves to others: making the lock (`make lock`), shipping an environment (the image or `runtime_env` of a cluster),
licences and known vulnerabilities (mlops/training/source_check).
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from mlops.provenance.digest import digest_json, hex_of

_SHOWN = 3
_PIN = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;#]+)\s*(?:#.*)?")


def read_pins(lock: str) -> dict[str, str]:
    """Canonical name to version of every `name==version` line; lines for other systems (`; marker`) are left out."""
    found = (_PIN.fullmatch(line.strip()) for line in lock.splitlines())
    return {_canonical(match[1]): match[2] for match in found if match}


def find_version(name: str) -> str | None:
    """The installed version of a distribution in this process's environment."""
    return _list_installed().get(name) or _ask_metadata(name)


@cache
def _list_installed() -> dict[str, str]:
    """By the names of the `*.dist-info` folders, earlier ones on the path first: reading all metadata takes long."""
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in sorted(Path(place or ".").glob("*.dist-info")):
            name, _, version = folder.stem.partition("-")
            found.setdefault(_canonical(name), version)
    return found


def _ask_metadata(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def digest_environment(versions: Mapping[str, str]) -> str:
    """Digest of names and versions; builds of one version (`2.13.0+cpu`) are alike."""
    return digest_json({name: _public(version) for name, version in sorted(versions.items())})


def explain_difference(pins: Mapping[str, str], *, find_version: Callable[[str], str | None] = find_version) -> str:
    """A sentence that names the first packages which differ here from the lock; "" when the digests are equal."""
    found = {name: find_version(name) or "" for name in pins}
    ours, locked = digest_environment(found), digest_environment(pins)
    if ours == locked:
        return ""
    differing = sorted(name for name in pins if _public(found[name]) != _public(pins[name]))
    named = [f"{name} {found[name] or 'is missing'} instead of {pins[name]}" for name in differing[:_SHOWN]]
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return f"its environment {hex_of(ours)[:12]} is not the locked one {hex_of(locked)[:12]}: {', '.join(named)}{more}"


def _public(version: str) -> str:
    return version.partition("+")[0]
