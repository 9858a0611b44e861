"""Rules that an image must keep whatever runs in it: each finding is a reason, none is a warning.

Leaves to others: reading the image (inventory.py), how it is started (runtimes, seccomp.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from mlops.errors import Reason
from mlops.serving.inventory import ImageFile, Inventory

_SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "csh", "tcsh", "busybox", "toybox"}
_MANAGERS = {"apt", "apt-get", "dpkg", "rpm", "dnf", "yum", "apk", "pip", "pip3", "conda", "uv", "gem", "npm"}
_TOOLS = {"curl", "wget", "nc", "ncat", "socat", "ssh", "perl", "gcc", "cc", "ld", "tar", "su", "sudo", "mount"}
_SECRET_NAME = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|PRIVATE|API_?KEY", re.IGNORECASE)
_WRITABLE = {"tmp"}
_OWNED_BY_SERVER = {"run/mlops"}


def find_weaknesses(inventory: Inventory) -> tuple[Reason, ...]:
    """Every rule that the image breaks."""
    return (*_of_config(inventory), *_of_files(inventory))


def _of_config(inventory: Inventory) -> Iterator[Reason]:
    config = inventory.config.get("config") or {}
    user = str(config.get("User") or "").split(":", maxsplit=1)[0]
    if not user.isdecimal() or int(user) == 0:
        yield Reason("root-user", f"the image runs as {user or 'root'!r}; set a numeric user other than 0")
    environment = dict(line.partition("=")[::2] for line in config.get("Env") or [])
    if environment.get("ORT_DISABLE_TELEMETRY") != "1":
        yield Reason("telemetry", "ORT_DISABLE_TELEMETRY is not 1: onnxruntime would report to its maker")
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and value:
            yield Reason("secret-in-environment", f"the variable {name} looks like a secret")
        if name.startswith("LD_"):
            yield Reason("loader-variable", f"the variable {name} changes what is loaded")
    entrypoint = config.get("Entrypoint") or []
    program = str(entrypoint[0]) if entrypoint else ""
    if not program.startswith("/") or program.lstrip("/") not in inventory.files:
        yield Reason("entrypoint", f"the entrypoint {program!r} is not an absolute path in the image")
    if config.get("Volumes"):
        yield Reason("volumes", "the image declares volumes, which are writable")
    if config.get("StopSignal", "SIGTERM") != "SIGTERM":
        yield Reason("stop-signal", "the image is not stopped by SIGTERM")


def _of_files(inventory: Inventory) -> Iterator[Reason]:
    for file in inventory.files.values():
        yield from _of_file(file)


def _of_file(file: ImageFile) -> Iterator[Reason]:
    path = PurePosixPath(file.name)
    where = f"/{file.name} (layer {file.layer})"
    if file.kind not in ("file", "folder", "link"):
        yield Reason("special-file", f"{where} is a device, socket or pipe ({file.kind})")
    if file.mode & 0o6000 and file.kind != "link":
        yield Reason("setuid", f"{where} is setuid or setgid")
    if file.has_capabilities:
        yield Reason("file-capabilities", f"{where} carries capabilities")
    if file.mode & 0o002 and file.kind != "link" and not (file.name in _WRITABLE and file.mode & 0o1000):
        yield Reason("world-writable", f"{where} is writable by everybody")
    if file.owner != 0 and file.name not in _OWNED_BY_SERVER:
        yield Reason("owner", f"{where} belongs to user {file.owner}, who could change it")
    if file.has_secret:
        yield Reason("secret", f"{where} holds what looks like a private key or a token")
    if file.kind != "folder" and path.parent.name in ("bin", "sbin"):
        for names, code in ((_SHELLS, "shell"), (_MANAGERS, "package-manager"), (_TOOLS, "tool")):
            if path.name in names:
                yield Reason(code, f"{where} must not be in a serving image")
    if file.kind == "folder" and path.name in ("pip", "setuptools") and "lib" in path.parts:
        yield Reason("package-manager", f"{where} must not be in a serving image")
