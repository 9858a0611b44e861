"""Adding raw files to a dataset: its recipe names them from then on, and the version that it now describes is pinned.

The recipe stays the one description of a dataset, so a fresh clone makes the same version. Only shards of isolation
groups that got rows change. Leaves to others: reading, checking and storing the rows (importing.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from mlops.datasets.importing import ImportOutcome, Progress, import_dataset
from mlops.datasets.recipe import FilesSource, load_recipe, recipe_file
from mlops.errors import DatasetError
from mlops.files import write_atomically
from mlops.places import Places


def plan_addition(places: Places, name: str, files: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """The recipe's new text, and the files as it names them; nothing is written.

    Raises:
        DatasetError: Unknown dataset, files of a wheel, a file that is absent, outside the project or already named.
    """
    recipe = load_recipe(places, name)
    path = recipe_file(places, name)
    if not isinstance(recipe.source, FilesSource):
        raise DatasetError(
            f"the rows of {name} come from {recipe.source.requirement}, to which no file can be added",
            hint=f"change `source` in {path}",
        )
    root, known = places.root.resolve(), {file.path for file in recipe.source.files}
    problems: list[str] = []
    added: list[str] = []
    for file in files:
        found = file.resolve()
        if not found.exists():
            problems.append(f"{file} does not exist")
        elif not found.is_relative_to(root):
            problems.append(f"{file} lies outside {root}: copy it below datasets/")
        elif (relpath := found.relative_to(root).as_posix()) in known | set(added):
            problems.append(f"{relpath} is already part of {name}")
        else:
            added.append(relpath)
    if problems or not added:
        raise DatasetError(f"nothing was added to {name}", items=tuple(problems), hint="name new files of the project")
    return insert_files(path.read_text(encoding="utf-8"), added, source=str(path)), tuple(added)


def add_files(
    places: Places, name: str, files: Sequence[Path], *, progress: Progress = lambda line: None
) -> ImportOutcome:
    """Add raw files to a dataset and pin the version with their rows.

    Args:
        places: The project.
        name: Of the dataset; what its recipe describes must be what is pinned.
        files: In the recipe's format, below the project root.
        progress: Told each stage.

    Raises:
        DatasetError: as `plan_addition` and `import_dataset`; recipe and pin are then as before.
    """
    text, _ = plan_addition(places, name, files)
    import_dataset(places, name, progress=progress)  # what else changed meanwhile must not slip in
    path = recipe_file(places, name)
    before = path.read_text(encoding="utf-8")
    write_atomically(path, text)  # first: after a kill, an import finishes what was begun
    try:
        return import_dataset(places, name, accept_changes=True, progress=progress)
    except BaseException:
        write_atomically(path, before)
        raise


def insert_files(text: str, added: Sequence[str], *, source: str) -> str:
    """A recipe's text with more files at the end of `source.files`; everything else, comments too, stays as it is.

    Raises:
        DatasetError: The list is written in a way that cannot be continued without a person.
    """
    items = [f"{{path: {json.dumps(path, ensure_ascii=False)}}}" for path in added]
    node = _find_list(yaml.compose(text, Loader=yaml.SafeLoader))
    if node is not None and node.flow_style:
        end = node.end_mark.index - 1
        longer = text[:end].rstrip().rstrip(",") + ", " + ", ".join(items) + text[end:]
    elif node is not None:
        lines = text.splitlines(keepends=True)
        first = lines[node.value[0].start_mark.line]
        indent = first[: first.rfind("-", 0, node.value[0].start_mark.column)]
        last = _last_line(node)
        lines[last] = lines[last].rstrip("\n") + "\n" + "".join(f"{indent}- {item}\n" for item in items)
        longer = "".join(lines)
    else:
        longer = text
    if not _is_longer_by(text, longer, added):
        raise DatasetError(
            f"{source}: the list `source.files` cannot be continued", hint="add the files there, then import"
        )
    return longer


def _find_list(root: yaml.Node | None) -> yaml.SequenceNode | None:
    node = root
    for key in ("source", "files"):
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node if isinstance(node, yaml.SequenceNode) and node.value else None


def _last_line(node: yaml.Node) -> int:
    """Line on which the last value inside ends; a block's own end mark lies beyond blank lines and comments."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    line: int = node.end_mark.line
    return line


def _is_longer_by(before: str, after: str, added: Sequence[str]) -> bool:
    """Whether the text means what it meant, with these files more."""
    try:
        old, new = yaml.safe_load(before), yaml.safe_load(after)
        old["source"]["files"] += [{"path": path} for path in added]
    except (yaml.YAMLError, TypeError, KeyError):
        return False
    return bool(old == new)
