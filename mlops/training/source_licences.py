"""Licences of the locked dependencies against a policy: what may be used, and which exceptions stand with which reason.

The policy is about using these packages to train and serve; the serving image holds only permissive ones.
Leaves to others: the report and what a finding leads to (source_check.py), legal advice.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass

ALLOWED = (
    r"\bmit(-0|-cmu)?\b",
    r"\bbsd\b|\b0bsd\b|\bbsd-[234]-clause\b",
    r"\bapache\b|\bapache-2\.0\b",
    r"\bpython software foundation\b|\bpsf(-2\.0)?\b",
    r"\bisc\b|\biscl\b",
    r"\bmozilla public license\b|\bmpl\b|\bmpl-2\.0\b",  # copyleft per file: unchanged files may be used
    r"\bzope public license\b|\bzpl\b",
    r"\bzlib\b|\bcc0-1\.0\b|\bbsl-1\.0\b|\bunlicense\b|\bpublic domain\b|\bboost\b|\bhpnd\b",
)
FORBIDDEN = (r"\bl?gpl|\bagpl|\bgnu\b", r"\bsspl\b", r"\bcommercial\b|\bproprietary\b|\bnon-?commercial\b|\bbusl\b")

EXCEPTIONS: Mapping[str, str] = {
    # name, or a pattern of names: why
    "grandalf": "GPL-2.0-only: draws DVC's graphs; run as a tool on this machine, never shipped in an image",
    "pygit2": "GPL-2.0 with linking exception: linking from any licence is allowed; only DVC uses it",
    "psycopg": "LGPL-3.0: used unchanged as a library, only with a PostgreSQL ledger; never shipped in an image",
    "psycopg-binary": "LGPL-3.0: as psycopg",
    "asyncssh": "EPL-2.0 (or GPL-2.0): used unchanged, only by DVC for ssh remotes; never shipped in an image",
    "dulwich": "Apache-2.0 chosen out of its two licences; only DVC uses it",
    "skops": "MIT by its repository's LICENSE file; the wheel's metadata says only `OSI Approved`",
    "nvidia-*": "NVIDIA's own licences: CUDA libraries of torch's default build, which may be used and passed on",
    "cuda-toolkit": "as nvidia-*: names those libraries; the wheel's metadata leaves its licence out",
    "huey": "MIT by its repository's LICENSE file; the wheel's metadata leaves it out",
}


@dataclass(frozen=True)
class LockedDistribution:
    """One line of the lock, and what is installed for it."""

    name: str
    locked: str
    installed: str | None
    """None: not installed, for instance because its marker excludes this machine."""
    licence: str
    """What the metadata says: SPDX expression, else classifiers, else free text."""


def read_lock(text: str) -> tuple[LockedDistribution, ...]:
    """The locked distributions with their licences as installed here."""
    found = []
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line.strip())
        if match:
            found.append(_look_up(match[1], match[2]))
    return tuple(found)


def _look_up(name: str, locked: str) -> LockedDistribution:
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return LockedDistribution(name=name, locked=locked, installed=None, licence="")
    classifiers = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or () if "License ::" in text]
    classifiers = [text for text in classifiers if text not in {"OSI Approved", "DFSG approved"}]
    expression, text = (next(iter(metadata.get_all(field) or ()), "") for field in ("License-Expression", "License"))
    stated = expression or "; ".join(classifiers) or text[:200]
    return LockedDistribution(name=name, locked=locked, installed=metadata["Version"], licence=stated)


def judge_licence(name: str, licence: str) -> str:
    """Why a licence may not be used; empty when it may.

    Of alternatives (`OR`) one must be allowed, of parts (`AND`, several classifiers) all.
    """
    if any(fnmatch.fnmatchcase(name.lower().replace("_", "-"), pattern) for pattern in EXCEPTIONS):
        return ""
    if not licence.strip():
        return "states no licence"
    alternatives = re.split(r"\s+OR\s+", licence) if " AND " not in licence and ";" not in licence else [licence]
    if any(_is_allowed(part) for part in alternatives):
        return ""
    return f"licence {licence!r} is not among the allowed ones"


def _is_allowed(expression: str) -> bool:
    parts = re.split(r"\s+AND\s+|;|\(|\)", expression)
    for part in filter(None, (part.strip() for part in parts)):
        options = [option for option in re.split(r"\s+OR\s+|^OR\s+|\s+OR$", part) if option]
        if not any(_is_plain_allowed(option) for option in options):
            return False
    return True


def _is_plain_allowed(text: str) -> bool:
    lowered = text.lower()
    if any(re.search(pattern, lowered) for pattern in FORBIDDEN):
        return False
    return any(re.search(pattern, lowered) for pattern in ALLOWED)
