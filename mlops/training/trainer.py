"""Loading a trainer file by path: `model(params)` and `train(worker, params)`, plain torch, at most 60 lines.

Which parameters a trainer knows is read from its text: every `params["name"]` and `params.get("name")`. A trainer that
reads them in another way declares `PARAMETERS = ("name", …)` at top level instead, and that is believed.
Leaves to others: running it (mlops/training/worker) and trying it out before money is spent (mlops/training/check).
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlops.errors import ProjectError, TrainingError
from mlops.provenance.digest import digest_bytes, digest_file

RESERVED = frozenset({"columns", "classes"})
"""Parameters that the machine adds to every trial: feature name to number of categories, and number of classes."""

SERVED_IMPORTS = frozenset({"torch", "numpy"}) | sys.stdlib_module_names
"""What a trainer may import where it is served itself (`export: torch`): its image has nothing else."""


@dataclass(frozen=True)
class Violation:
    """A line of the contract that does not hold; the lines stand in docs/sweeps.md, section Trainer."""

    line: str
    """Stable, kebab-case."""
    text: str
    """What was seen, and how to fix it."""


@dataclass(frozen=True)
class TrainerText:
    """A trainer that was read but not run."""

    path: Path
    digest: str
    required: frozenset[str]
    """Parameters read as `params["name"]`."""
    optional: frozenset[str]
    """Parameters read as `params.get("name")`."""
    imports: frozenset[str]
    """What it imports when it is loaded, or in `model` and what that uses; the first part of each name."""

    @property
    def known(self) -> frozenset[str]:
        """All parameters, the reserved ones left out."""
        return (self.required | self.optional) - RESERVED


def read_trainer(path: Path) -> TrainerText:
    """Parse a trainer without running it.

    Raises:
        ProjectError: Absent, not Python, or without `model(params)` or `train(worker, params)`.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise ProjectError(f"{path} cannot be read: {error.strerror}", hint="a product has a trainer file") from error
    try:
        tree = ast.parse(blob, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 1) or 1
        raise ProjectError(f"{path}:{line}: not valid Python: {error}", hint="fix the line and try again") from error
    _require_functions(tree, path)
    declared = _declared_parameters(tree)
    imports = frozenset(name for node in _served_part(tree) for name in _imported_names(node))
    if declared is not None:
        return TrainerText(path, digest_bytes(blob), required=declared, optional=frozenset(), imports=imports)
    required = {key for key in map(_subscript_key, ast.walk(tree)) if key is not None}
    optional = {key for key in map(_get_key, ast.walk(tree)) if key is not None}
    needed, others = frozenset(required), frozenset(optional - required)
    return TrainerText(path, digest_bytes(blob), required=needed, optional=others, imports=imports)


def compare_parameters(trainer: TrainerText, *, offered: Iterable[str]) -> tuple[str, ...]:
    """Problems between what the trainer reads and what a sweep offers, one line each."""
    names = set(offered)
    problems = []
    for name in sorted(names - trainer.known):
        close = difflib.get_close_matches(name, sorted(trainer.known), n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else f"; it reads {', '.join(sorted(trainer.known))}"
        problems.append(f"parameter {name!r} is not read by {trainer.path.name}{suggestion}")
    problems.extend(
        f"{trainer.path.name} reads params[{name!r}], which the sweep does not give: add it to `space` or `fixed`"
        for name in sorted(trainer.required - RESERVED - names)
    )
    return tuple(problems)


def load_trainer(path: Path) -> ModuleType:
    """Run the file as a module of its own; the same text is run once in a process.

    Raises:
        ProjectError: as `read_trainer`.
        TrainingError: It raised while it was imported.
    """
    name = f"mlops_trainer_{digest_file(path)[7:23]}" if path.is_file() else ""
    if name in sys.modules:
        return sys.modules[name]  # a warm worker runs it in each trial
    text = read_trainer(path)
    spec = importlib.util.spec_from_file_location(name, text.path)
    if spec is None or spec.loader is None:
        raise TrainingError(f"{path} cannot be loaded as Python", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TrainingError(f"{path} fails when imported: {type(error).__name__}: {error}") from error
    return module


def _require_functions(tree: ast.Module, path: Path) -> None:
    wanted = {"model": ["params"], "train": ["worker", "params"]}
    found = {
        node.name: [item.arg for item in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    items = tuple(
        f"{path}: def {name}({', '.join(arguments)}) is missing or has other arguments"
        for name, arguments in wanted.items()
        if found.get(name) != arguments
    )
    if items:
        raise ProjectError(f"{path} is not a trainer", items=items, hint="see docs/sweeps.md, section Trainer")


def _declared_parameters(tree: ast.Module) -> frozenset[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PARAMETERS" for t in node.targets):
            value: Any = ast.literal_eval(node.value)
            return frozenset(str(item) for item in value)
    return None


def _served_part(tree: ast.Module) -> list[ast.AST]:
    """The nodes outside functions and classes, and those of `model` and of what it names, directly or not."""
    definitions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found: list[ast.AST] = [node for node in tree.body if node not in definitions.values()]
    wanted = ["model"]
    while wanted:
        definition = definitions.pop(wanted.pop(), None)
        for node in ast.walk(definition) if definition is not None else ():
            found.append(node)
            wanted += [node.id] if isinstance(node, ast.Name) else []
    return found


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module.partition(".")[0]] if node.module else []
    return []


def _is_params(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "params"


def _subscript_key(node: ast.AST) -> str | None:
    if isinstance(node, ast.Subscript) and _is_params(node.value) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return None


def _get_key(node: ast.AST) -> str | None:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get"
        and _is_params(node.func.value)
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return str(node.args[0].value)
    return None
