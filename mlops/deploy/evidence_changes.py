"""What changed in the evidence since the serving version: gate policy, project checks, incident cases, golden requests.

A change counts as stricter only when that can be proved from the text: a check added, a lower bound raised, an upper
bound lowered, a case added. Everything else may loosen the gate and is treated so.
Leaves to others: what follows (promotion.py) and reading old texts from git (promotion_facts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_LOWER_BOUNDS = frozenset({"minimum", "min", "at_least", "not_below", "lower"})
_UPPER_BOUNDS = frozenset({"maximum", "max", "at_most", "not_above", "upper", "margin", "tolerance"})
_MISSING = object()


@dataclass(frozen=True)
class EvidenceChange:
    """One difference."""

    path: str
    """Project file."""
    text: str
    """What is different, for people."""
    is_stricter: bool
    """Proved to make the gate harder; everything else may loosen it."""
    writers: tuple[str, ...]
    """People (or bare addresses) who wrote it."""


def compare_policy(
    path: str, *, old: str | None, new: str | None, writers: tuple[str, ...]
) -> tuple[EvidenceChange, ...]:
    """Differences between two texts of a YAML policy, field by field."""
    if old == new:
        return ()
    before, after = _parse(old), _parse(new)
    if before is None or after is None:
        text = "is new" if old is None else "was removed" if new is None else "changed and cannot be compared"
        return (EvidenceChange(path, text, is_stricter=old is None, writers=writers),)
    return tuple(
        EvidenceChange(path, text, is_stricter=is_stricter, writers=writers)
        for text, is_stricter in _compare(before, after, ())
    )


def compare_files(
    kind: str, *, old: Mapping[str, bytes], new: Mapping[str, bytes], writers: Mapping[str, tuple[str, ...]]
) -> tuple[EvidenceChange, ...]:
    """Differences between two sets of files (checks, cases): an added one is stricter, any other change may loosen.

    Args:
        kind: `check`, `case`: for the text.
        old: Path to content, as the serving version saw it.
        new: The same for the version to be promoted.
        writers: Path to the people who changed it.
    """
    found: list[EvidenceChange] = []
    for path in sorted(old.keys() | new.keys()):
        by = writers.get(path, ())
        if path not in old:
            found.append(EvidenceChange(path, f"{kind} added", is_stricter=True, writers=by))
        elif path not in new:
            found.append(EvidenceChange(path, f"{kind} removed", is_stricter=False, writers=by))
        elif old[path] != new[path]:
            found.append(EvidenceChange(path, f"{kind} changed", is_stricter=False, writers=by))
    return tuple(found)


def _parse(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _compare(before: Any, after: Any, where: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    if isinstance(before, list) and isinstance(after, list):
        before, after = _key_by_name(before), _key_by_name(after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(map(str, before.keys() | after.keys())):
            yield from _compare(before.get(key, _MISSING), after.get(key, _MISSING), (*where, key))
        return
    if type(before) is type(after) and before == after:
        return
    name = ".".join(where)
    if before is _MISSING:
        yield f"{name} added ({_brief(after)})", _is_check(where)
    elif after is _MISSING:
        yield f"{name} removed (was {_brief(before)})", False
    else:
        yield (
            f"{name}: {_brief(before)} -> {_brief(after)}",
            _is_stricter_bound(where[-1] if where else "", before, after),
        )


def _is_check(where: tuple[str, ...]) -> bool:
    """A whole check that was added, as an entry of the list `checks`."""
    return len(where) == 2 and where[0] == "checks"


def _is_stricter_bound(field: str, before: Any, after: Any) -> bool:
    if isinstance(before, bool) or isinstance(after, bool):
        return field == "blocking" and after is True
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return False
    return (field in _LOWER_BOUNDS and after > before) or (field in _UPPER_BOUNDS and after < before)


def _key_by_name(entries: list[Any]) -> dict[str, Any]:
    """A list of named things is compared by name, any other by content."""
    names = [entry.get("name") or entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    if all(names) and len(set(names)) == len(names):
        return {str(name): entry for name, entry in zip(names, entries, strict=True)}
    return {str(index): entry for index, entry in enumerate(entries)}


def _brief(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 80 else f"{text[:77]}..."
