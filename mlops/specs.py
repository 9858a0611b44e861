"""Project files (YAML) become frozen values; every problem of a file is reported at once, with file, line and field.

Leaves to others: what the files mean (each room has its own spec classes).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import ProjectError

SpecT = TypeVar("SpecT", bound="Spec")


class Spec(BaseModel):
    """Base of all project-file classes: frozen, and a field nobody declared is a problem."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_spec(path: Path, kind: type[SpecT]) -> SpecT:
    """Read one project file.

    Raises:
        ProjectError: Absent, not YAML, or with problems; `items` lists each as `file:line: field: problem`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ProjectError(f"{path} does not exist", hint="`mlops doctor` lists the files a project needs") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{path} cannot be read: {error}") from error
    return parse_spec(text, kind, source=str(path))


def parse_spec(text: str, kind: type[SpecT], *, source: str) -> SpecT:
    """Text of a project file to its value.

    Raises:
        ProjectError: as `load_spec`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ProjectError(f"{source}:{line}: not valid YAML: {problem}", hint="fix the line and try again") from error
    except ValueError as error:  # a date that no calendar has, such as 2026-13-01
        line = _find_unreadable(node)
        raise ProjectError(f"{source}:{line}: no such date: {error}", hint="fix the line and try again") from error
    duplicates = tuple(_duplicate_keys(node, source)) if node is not None else ()
    if duplicates:
        raise ProjectError(f"{source} names a key twice", items=duplicates)
    try:
        return kind.model_validate(content if content is not None else {})
    except ValidationError as error:
        items = _render_problems(error, node, source)
        count = f"{len(items)} problem{'s' if len(items) > 1 else ''}"
        raise ProjectError(f"{source} has {count}", items=items, hint="fix them and run `mlops doctor`") from error


_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "model_type": "Input should be a mapping of names to values",
    "dict_type": "Input should be a mapping of names to values",
    "tuple_type": "Input should be a list",
    "too_short": "needs at least {min_length} items, has {actual_length}",
    "union_tag_invalid": "{tag!r} is none of {expected_tags}",
}
_SHOULD_BE = "Input should be "


def _render_problems(error: ValidationError, node: yaml.Node | None, source: str) -> tuple[str, ...]:
    """A line per field; what the members of a union ask of the same value is said in one."""
    found: dict[tuple[str, ...], tuple[int, list[str]]] = {}
    for problem in error.errors():
        location = tuple(problem["loc"])
        known = _MESSAGES.get(problem["type"])
        message = known.format(**problem.get("ctx", {})) if known else str(problem["msg"]).removeprefix("Value error, ")
        line, field = _find_line(node, location, is_absent=problem["type"] == "missing")
        if problem["type"] == "too_short" and any(each[: len(field)] == field for each in found):
            continue  # its items have problems of their own
        found.setdefault(field, (line, []))[1].append(message)
    return tuple(
        f"{source}:{line}: {'.'.join(field) or '(file)'}: {_join(messages)}"
        for field, (line, messages) in found.items()
    )


def _join(messages: list[str]) -> str:
    unique = list(dict.fromkeys(messages))
    if len(unique) > 1 and all(message.startswith(_SHOULD_BE) for message in unique):
        return _SHOULD_BE + " or ".join(message.removeprefix(_SHOULD_BE) for message in unique)
    return "; ".join(unique)


def _find_line(
    node: yaml.Node | None, location: tuple[str | int, ...], *, is_absent: bool
) -> tuple[int, tuple[str, ...]]:
    """Line of the deepest part of `location` that stands in the file, and those parts; the last too when it is absent.

    pydantic adds parts for union members, which nobody wrote.
    """
    line = node.start_mark.line + 1 if node is not None else 1
    parts: list[str] = []
    for index, part in enumerate(location):
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is not None or (is_absent and index == len(location) - 1):
            parts.append(str(part))
        node = child if child is not None else node
    return line, tuple(parts)


def _find_unreadable(node: yaml.Node | None) -> int:
    """Line of the first plain value that YAML takes for a date and cannot make one of."""
    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.safe_load(node.value) if node.tag.endswith(":timestamp") else None
        except ValueError:
            return int(node.start_mark.line) + 1
        return 0
    children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else []
    children += node.value if isinstance(node, yaml.SequenceNode) else []
    return next((line for line in map(_find_unreadable, children) if line), 0)


def _duplicate_keys(node: yaml.Node, source: str) -> list[str]:
    found: list[str] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                found.append(f"{source}:{key.start_mark.line + 1}: {key.value}: stands twice in this mapping")
            seen.add(key.value)
            found.extend(_duplicate_keys(value, source))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found.extend(_duplicate_keys(item, source))
    return found
