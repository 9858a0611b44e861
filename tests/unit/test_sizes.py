"""STYLE's hard lines: function and file sizes, no import cycles, no `sys.exit` below the command line, no odd rooms."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (
    sorted(ROOT.glob("mlops/**/*.py")) + sorted(ROOT.glob("training/*.py")) + sorted(ROOT.glob("evaluation/**/*.py"))
)
FUNCTION_LINES = 60
FILE_LINES = 500
TRAINER_LINES = 60
RELEASE_LINES = 120
FORBIDDEN_NAMES = {"core", "common", "utils", "util", "helpers", "helper", "models", "misc"}


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Lines that hold code: no blank lines, comments or docstrings."""
    lines = {
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def name_called(node: ast.AST) -> str:
    """The name that a call calls, when it is plain or of a module; else ""."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name
        case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
            return f"{module}.{name}"
    return ""


def test_sizes_are_kept() -> None:
    too_long = []
    for path in SOURCES:
        text = path.read_text()
        tree = ast.parse(text)
        lines = code_lines(text, tree)
        if len(lines) > FILE_LINES:
            too_long.append(f"{path} has {len(lines)} code lines")
        if path.parent.name == "migrations":
            continue  # frozen DDL: one long list of columns, never edited again
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if length > FUNCTION_LINES:
                    too_long.append(f"{path}:{node.lineno} {node.name} has {length} code lines")
    assert not too_long, "\n".join(too_long)


def test_names_say_something() -> None:
    assert [path for path in SOURCES if FORBIDDEN_NAMES & {*path.relative_to(ROOT).with_suffix("").parts}] == []


def test_only_the_command_line_exits_and_every_module_says_what_it_is_for() -> None:
    wrong = []
    for path in sorted(ROOT.glob("mlops/**/*.py")):
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            wrong.append(f"{path} has no docstring")
        if (ROOT / "mlops" / "cli") in path.parents or path == ROOT / "mlops/serving/server/__main__.py":
            continue  # the command line, and the program inside the image
        exits = [node.lineno for node in ast.walk(tree) if name_called(node) in {"sys.exit", "exit", "quit"}]
        wrong += [f"{path}:{line} exits" for line in exits]
    assert not wrong, "\n".join(wrong)


def test_trainers_fit_on_a_page() -> None:
    for path in ROOT.glob("training/*.py"):
        text = path.read_text()
        assert len(code_lines(text, ast.parse(text))) <= TRAINER_LINES, path


def test_the_start_fits_on_two_pages() -> None:
    assert len((ROOT / "mlops" / "release.py").read_text().splitlines()) <= RELEASE_LINES
