"""Entering a public key into `deploy/roles.yaml`, its comments and order kept.

Leaves to others: what the file means (mlops/deploy/roles.py) and making the key (mlops/provenance/keys.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from mlops.errors import ProjectError
from mlops.files import write_atomically

EMPTY_FILE = "# Who may do what. `mlops keys init --person NAME` adds a key.\nversion: 1\n"
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class KeyEntry:
    """A key to be entered."""

    section: Literal["people", "machines"]
    name: str
    public: str
    roles: tuple[str, ...] = ()
    """Of a person who is new in the file."""
    emails: tuple[str, ...] = ()
    """Of a person who is new in the file."""

    def to_block(self) -> dict[str, Any]:
        """The entry of someone who is new in the file."""
        extra = {"emails": list(self.emails), "roles": list(self.roles)}
        return {**{name: value for name, value in extra.items() if value}, "keys": [self.public]}


def enter_keys(path: Path, entries: Sequence[KeyEntry], *, lock: Path) -> bool:
    """Enter keys into the file, one call at a time; gives whether it changed.

    Raises:
        ProjectError: As `add_key_entry`.
    """
    with FileLock(lock, timeout=_LOCK_SECONDS):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        text = before or EMPTY_FILE
        for entry in entries:
            text = add_key_entry(text, entry)
        if text != before:
            write_atomically(path, text)
    return text != before


def add_key_entry(text: str, entry: KeyEntry) -> str:
    """The file's text with the key in it; the same text when it stands there already.

    Raises:
        ProjectError: The file has a form that cannot be edited safely; says what to add by hand.
    """
    content = _load(text)
    expected = _expect(content, entry)
    if expected == content:
        return text
    edited = _edit(text, entry)
    if edited is None or _load(edited) != expected:
        block = yaml.safe_dump({entry.section: {entry.name: entry.to_block()}}, sort_keys=False).rstrip()
        raise ProjectError(
            "deploy/roles.yaml cannot be edited safely", hint="add by hand:", items=tuple(block.split("\n"))
        )
    return edited


def require_same_person(text: str, person: str, *, roles: tuple[str, ...], emails: tuple[str, ...]) -> None:
    """A person who stands in the file is never given other roles or addresses: people do that, and review it.

    Raises:
        ProjectError: Something is no address, or stands otherwise in the file.
    """
    for email in emails:
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
            raise ProjectError(f"{email!r} is not an address", hint="give the one that `git config user.email` prints")
    owner = (_load(text).get("people") or {}).get(person)
    if not isinstance(owner, dict):
        return
    for name, given in (("roles", roles), ("emails", emails)):
        missing = [one for one in given if one not in (owner.get(name) or ())]
        if missing:
            raise ProjectError(
                f"deploy/roles.yaml has {person} without {', '.join(missing)}",
                hint=f"add to people.{person}.{name} there, and commit it",
            )


def _load(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ProjectError(f"deploy/roles.yaml is not valid YAML: {error}", hint="mend it first") from error
    if not isinstance(content, dict):
        raise ProjectError("deploy/roles.yaml is not a mapping", hint="mend it first")
    return content


def _expect(content: dict[str, Any], entry: KeyEntry) -> dict[str, Any]:
    section = dict(content.get(entry.section) or {})
    owner = section.get(entry.name)
    if owner is None:
        section[entry.name] = entry.to_block()
    else:
        keys = list(owner.get("keys") or [])
        if not any(
            entry.public == key or (isinstance(key, dict) and key.get("public") == entry.public) for key in keys
        ):
            section[entry.name] = {**owner, "keys": [entry.public, *keys]}
    return content if section == (content.get(entry.section) or {}) else {**content, entry.section: section}


def _edit(text: str, entry: KeyEntry) -> str | None:
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    section = _child(top, entry.section)
    block = yaml.safe_dump({entry.name: entry.to_block()}, sort_keys=False, default_flow_style=None).rstrip()
    if section is None:
        return f"{text.rstrip()}\n{entry.section}:\n{_indent(block, 2)}\n"
    if not section.value:
        return _replace(text, section, f"\n{_indent(block, 2)}")
    if not isinstance(section, yaml.MappingNode) or section.flow_style:
        return None
    owner = _child(section, entry.name)
    if owner is None:
        return _insert_before(text, section, block)
    keys = _child(owner, "keys")
    if keys is None:
        return None if owner.flow_style else _insert_before(text, owner, f"keys: [{entry.public!r}]")
    if not keys.value:
        return _replace(text, keys, f"[{entry.public!r}]")
    if keys.flow_style:
        return text[: keys.start_mark.index + 1] + f"{entry.public!r}, " + text[keys.start_mark.index + 1 :]
    return _insert_before(text, keys, f"- {entry.public}")


def _child(node: Any, key: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == key), None)
    return None


def _replace(text: str, node: yaml.Node, content: str) -> str:
    before = text[: node.start_mark.index]
    if content.startswith("\n"):
        before = before.rstrip(" ")
        if node.start_mark.index == node.end_mark.index:  # `people:` without a value
            before = before.rstrip("\n")
    elif not before.endswith(" "):
        before += " "
    return before + content + text[node.end_mark.index :]


def _insert_before(text: str, node: yaml.Node, block: str) -> str:
    """A block as the first entry of a block mapping or sequence."""
    column = node.start_mark.column
    start = node.start_mark.index - column
    return text[:start] + _indent(block, column) + "\n" + text[start:]


def _indent(block: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in block.split("\n"))
