"""Who we are to a registry: docker's config file and its credential helpers, as every other tool reads them.

Leaves to others: asking the registry (oci_registry.py). Nothing is ever written or logged.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.errors import ServingError

_HELPER_SECONDS = 30


@dataclass(frozen=True)
class Credentials:
    """A name and a password or token."""

    name: str
    password: str = field(repr=False)


def find_credentials(registry: str, *, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """What docker's config says about a registry; None when it says nothing.

    Raises:
        ServingError: The file is not JSON, or a helper fails.
    """
    variables = os.environ if environment is None else environment
    folder = Path(variables.get("DOCKER_CONFIG") or Path(variables.get("HOME", "/nonexistent")) / ".docker")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ServingError(f"{folder}/config.json cannot be read: {error}", hint="log in again") from error
    helper = (config.get("credHelpers") or {}).get(registry) or config.get("credsStore")
    if helper:
        found = _ask_helper(str(helper), registry)
        if found is not None:
            return found
    entry = (config.get("auths") or {}).get(registry) or (config.get("auths") or {}).get(f"https://{registry}")
    return _read_entry(entry, registry) if entry else None


def _read_entry(entry: Mapping[str, str], registry: str) -> Credentials | None:
    if entry.get("auth"):
        try:
            name, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except ValueError as error:
            raise ServingError(f"the credentials of {registry} cannot be read", hint="log in again") from error
        return Credentials(name=name, password=password)
    if entry.get("username"):
        return Credentials(name=entry["username"], password=entry.get("password", ""))
    return None


def _ask_helper(helper: str, registry: str) -> Credentials | None:
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        raise ServingError(
            f"docker's config names the credential helper {helper!r}, which is not installed",
            hint=f"install docker-credential-{helper}, or remove it from the config",
        )
    try:
        done = subprocess.run(
            [program, "get"], input=registry, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
        if done.returncode:
            return None  # the protocol's way to say that it knows nothing
        content = json.loads(done.stdout)
        return Credentials(name=content["Username"], password=content["Secret"])
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        raise ServingError(f"the credential helper {helper!r} gave no usable answer") from error
