"""Known vulnerabilities of an image's packages, from an imported OSV snapshot; missing or stale data never passes.

A snapshot is a folder: `snapshot.json` (`{"version": 1, "created": "…Z", "ecosystems": ["PyPI", "Debian:12"]}`) and OSV
records (https://ossf.github.io/osv-schema/), one JSON file each, in any subfolders.
Leaves to others: fetching snapshots, reading the image (inventory.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cmp_to_key
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from mlops.errors import Reason
from mlops.serving.inventory import Inventory, Package

MAX_AGE_DAYS = 7.0
ECOSYSTEMS = {"pypi": "PyPI", "deb": "Debian:12"}


@dataclass(frozen=True)
class Acceptance:
    """A vulnerability that people decided to live with for a while."""

    identity: str
    reason: str
    until: date


@dataclass(frozen=True)
class VulnerabilityReport:
    """What the snapshot says about an image."""

    affected: tuple[Reason, ...]
    """Known vulnerabilities that nobody accepted."""
    unknown: tuple[Reason, ...]
    """Why the answer is not complete."""
    accepted: tuple[str, ...]
    records: int


def find_vulnerabilities(
    inventory: Inventory, *, snapshot: Path, now: datetime, acceptances: Sequence[Acceptance] = ()
) -> VulnerabilityReport:
    """Match every package against every record of its ecosystem.

    Args:
        inventory: Of the image.
        snapshot: Folder of the imported snapshot.
        now: With a time zone.
        acceptances: From `deploy/<product>.yaml`.
    """
    unknown = [*_judge_snapshot(snapshot, inventory, now=now)]
    if unknown and not snapshot.is_dir():
        return VulnerabilityReport(affected=(), unknown=tuple(unknown), accepted=(), records=0)
    found = _Matches(unknown)
    records = 0
    for path in sorted(snapshot.rglob("*.json")):
        if path.name == "snapshot.json":
            continue
        records += 1
        found.match(path, inventory.packages)
    if not records:
        unknown.append(Reason("vulnerabilities-unknown", f"{snapshot} holds no records"))
    accepted = {item.identity for item in acceptances if item.until >= now.date()}
    return VulnerabilityReport(
        affected=tuple(reason for identity, reason in found.affected if identity not in accepted),
        unknown=tuple(unknown),
        accepted=tuple(sorted({identity for identity, _ in found.affected if identity in accepted})),
        records=records,
    )


def _judge_snapshot(snapshot: Path, inventory: Inventory, *, now: datetime) -> Iterator[Reason]:
    code = "vulnerabilities-unknown"
    try:
        about = json.loads((snapshot / "snapshot.json").read_text("utf-8"))
        created = datetime.fromisoformat(about["created"])
        covered = set(about["ecosystems"])
        age_days = (now - created).total_seconds() / 86_400
    except (OSError, ValueError, KeyError, TypeError):
        yield Reason(code, f"{snapshot} is no OSV snapshot (snapshot.json is missing or unreadable); import one")
        return
    if not 0 <= age_days <= MAX_AGE_DAYS:
        yield Reason(code, f"the OSV snapshot is {age_days:.1f} days old, at most {MAX_AGE_DAYS:g} are allowed")
    for kind in sorted({package.kind for package in inventory.packages}):
        if ECOSYSTEMS[kind] not in covered:
            yield Reason(code, f"the OSV snapshot does not cover {ECOSYSTEMS[kind]}")


class _Matches:
    def __init__(self, unknown: list[Reason]) -> None:
        self._unknown = unknown
        self.affected: list[tuple[str, Reason]] = []

    def match(self, path: Path, packages: Sequence[Package]) -> None:
        try:
            record = json.loads(path.read_text("utf-8"))
            identity = str(record["id"])
            if record.get("withdrawn"):
                return
            for package in packages:
                if any(_affects(entry, package) for entry in record.get("affected") or ()):
                    text = f"{package.name} {package.version}: {identity} {record.get('summary', '')}".strip()
                    self.affected.append((identity, Reason("vulnerable", text)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidVersion) as error:
            self._unknown.append(
                Reason(
                    "vulnerabilities-unknown", f"the record {path.name} was skipped: {type(error).__name__}: {error}"
                )
            )


def _affects(entry: Mapping[str, Any], package: Package) -> bool:
    about = entry["package"]
    ecosystem = ECOSYSTEMS[package.kind]
    if about["ecosystem"] not in (ecosystem, ecosystem.partition(":")[0]):
        return False
    name = str(about["name"])
    if package.kind == "pypi":
        if re.sub(r"[-_.]+", "-", name).lower() != package.name:
            return False
        return package.version in (entry.get("versions") or ()) or any(
            _within(item["events"], Version(package.version), Version) for item in _ranges(entry)
        )
    if name != package.source:
        return False
    key = cmp_to_key(compare_debian_versions)
    return package.source_version in (entry.get("versions") or ()) or any(
        _within(item["events"], key(package.source_version), key) for item in _ranges(entry)
    )


def _ranges(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in entry.get("ranges") or () if item["type"] in ("ECOSYSTEM", "SEMVER")]


def _within(events: Sequence[Mapping[str, str]], version: Any, key: Any) -> bool:
    """OSV's evaluation: sorted events switch `affected` on and off."""
    is_affected = False
    order = {"introduced": 0, "fixed": 1, "last_affected": 2, "limit": 3}
    flat = [(name, text) for event in events for name, text in event.items() if name in order]
    zero = [(name, text) for name, text in flat if text == "0"]
    rest = sorted(((name, text) for name, text in flat if text != "0"), key=lambda item: key(item[1]))
    for name, text in [*zero, *rest]:
        if name == "introduced" and (text == "0" or version >= key(text)):
            is_affected = True
        elif (name == "fixed" and version >= key(text)) or (name == "last_affected" and version > key(text)):
            is_affected = False
    return is_affected


def compare_debian_versions(left: str, right: str) -> int:
    """Negative, zero or positive, as `dpkg --compare-versions` orders (Debian Policy 5.6.12)."""
    for mine, theirs in zip(_split_version(left), _split_version(right), strict=True):
        result = _compare_parts(mine, theirs)
        if result:
            return result
    return 0


def _split_version(text: str) -> tuple[str, str, str]:
    epoch, separator, rest = text.partition(":")
    if not separator:
        epoch, rest = "0", text
    upstream, separator, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if separator else (epoch, rest, "0")


def _compare_parts(left: str, right: str) -> int:
    while left or right:
        mine, left = _take(left, r"[^0-9]*")
        theirs, right = _take(right, r"[^0-9]*")
        for index in range(max(len(mine), len(theirs))):
            difference = _rank(mine[index : index + 1]) - _rank(theirs[index : index + 1])
            if difference:
                return difference
        mine, left = _take(left, r"[0-9]*")
        theirs, right = _take(right, r"[0-9]*")
        number = int(mine or 0) - int(theirs or 0)
        if number:
            return number
    return 0


def _take(text: str, pattern: str) -> tuple[str, str]:
    match = re.match(pattern, text)
    head = match[0] if match else ""
    return head, text[len(head) :]


def _rank(letter: str) -> int:
    """`~` before the end, the end before letters, letters before the rest."""
    if letter == "~":
        return -1
    if not letter:
        return 0
    return ord(letter) if letter.isalpha() else ord(letter) + 256
