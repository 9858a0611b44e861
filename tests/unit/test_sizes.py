"""STYLE's hard lines: function and file sizes, no import cycles, no `sys.exit` below the command line, no odd rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    sorted(ROOT.glob("mlops/**/*.py")) + sorted(ROOT.glob("training/*.py")) + sorted(ROOT.glob("evaluation/**/*.py"))
)
FUNCTION_LINES = 60
FILE_LINES = 500
TRAINER_LINES = 60
RELEASE_LINES = 120
FORBIDDEN_NAMES = {"core", "common", "utils", "util", "helpers", "helper", "models", "misc"}


def code_lines(path: Path) -> set[int]:
    """Lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text()
    lines = {
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_are_kept(path: Path) -> None:
    lines = code_lines(path)
    assert len(lines) <= FILE_LINES, f"{path} has {len(lines)} code lines"
    if path.parent.name == "migrations":
        return  # frozen DDL: one long list of columns, never edited again
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            assert length <= FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} code lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_something(path: Path) -> None:
    assert not FORBIDDEN_NAMES & {*path.relative_to(ROOT).with_suffix("").parts}, path


@pytest.mark.parametrize("path", sorted(ROOT.glob("mlops/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_exits_and_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    if (ROOT / "mlops" / "cli") in path.parents or path == ROOT / "mlops/serving/server/__main__.py":
        return  # the command line, and the program inside the image
    exits = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.exit", "exit", "quit"}
    ]
    assert not exits, f"{path}: sys.exit in lines {exits}"


def test_trainers_fit_on_a_page() -> None:
    for path in ROOT.glob("training/*.py"):
        assert len(code_lines(path)) <= TRAINER_LINES, path


def test_the_start_fits_on_two_pages() -> None:
    assert len((ROOT / "mlops" / "release.py").read_text().splitlines()) <= RELEASE_LINES
