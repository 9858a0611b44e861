"""Licences of what an image ships, against a policy: Python distributions permissive, Debian packages from main.

Leaves to others: reading the image (inventory.py), legal advice.
"""

from __future__ import annotations

import re

from mlops.errors import Reason
from mlops.serving.inventory import Inventory, Package

ALLOWED = (
    r"MIT(-0|-CMU)?", r"BSD(-[0-4]-Clause)?|0BSD", r"Apache(-2\.0)?", r"Python|PSF(-2\.0)?", r"ISC", r"Zlib",
    r"MPL(-2\.0)?|Mozilla Public License", r"CC0(-1\.0)?", r"Unlicense", r"Boost|BSL-1\.0", r"HPND",
)  # fmt: skip
_ALLOWED = re.compile(rf"\b(?:{'|'.join(ALLOWED)})\b", re.IGNORECASE)
_FORBIDDEN = re.compile(r"\bA?L?GPL|GNU|SSPL|proprietary|commercial|BUSL", re.IGNORECASE)
_EXCEPTIONS = {
    "numpy": "its bundled libgfortran and libquadmath are GPL-3.0 with the runtime exception, LGPL-2.1: linking is free"
}


def find_licence_problems(inventory: Inventory) -> tuple[Reason, ...]:
    """Every package whose licence is unknown or not allowed in an image."""
    found = [(package, _judge(package)) for package in inventory.packages]
    return tuple(Reason("licence", f"{package.name} {package.version} {text}") for package, text in found if text)


def _judge(package: Package) -> str:
    """Why it may not be shipped; empty when it may."""
    if not package.licence:
        return "states no licence" if package.kind == "pypi" else "has no copyright file"
    if package.kind == "deb":
        return ""  # Debian main is free software by its guidelines; the copyright files stay in the image
    if package.name in _EXCEPTIONS:
        return ""
    for part in re.split(r"\bAND\b|;", package.licence):
        choices = re.split(r"\bOR\b", part)
        if not any(_ALLOWED.search(choice) and not _FORBIDDEN.search(choice) for choice in choices):
            return f"is under {part.strip()!r}, which the policy for images does not allow"
    return ""
