"""Project files (YAML) become frozen values; every problem of a file is reported at once, with file, line and field.

Leaves to others: what the files mean (each room has its own spec classes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

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
    duplicates = tuple(_duplicate_keys(node, source)) if node is not None else ()
    if duplicates:
        raise ProjectError(f"{source} names a key twice", items=duplicates)
    try:
        return kind.model_validate(content if content is not None else {})
    except ValidationError as error:
        items = tuple(_render_problem(problem, node, source) for problem in error.errors())
        count = f"{len(items)} problem{'s' if len(items) > 1 else ''}"
        raise ProjectError(f"{source} has {count}", items=items, hint="fix them and run `mlops doctor`") from error


def _render_problem(problem: Any, node: yaml.Node | None, source: str) -> str:
    location = tuple(problem["loc"])
    field = ".".join(str(part) for part in location) or "(file)"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown field"
    if problem["type"] == "missing":
        message = "is required"
    return f"{source}:{_find_line(node, location)}: {field}: {message}"


def _find_line(node: yaml.Node | None, location: tuple[str | int, ...]) -> int:
    """Line of the deepest part of `location` that stands in the file."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            continue  # pydantic adds parts for union members that are not in the file
        node = child
    return line


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
