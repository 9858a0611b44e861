"""STYLE 11: every outside system is imported in the one or two modules named after it, and nowhere else."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOORS = {
    "ray": ("training/ray_",),
    "mlflow": ("registry/mlflow_",),
    "dvc": ("datasets/dvc_",),
    "dvc_data": ("datasets/dvc_",),
    "dvc_objects": ("datasets/dvc_",),
    "optuna": ("training/optuna_",),
}


@cache
def imported_names(path: Path) -> set[str]:
    """First part of every module that a file imports, at run time (not under TYPE_CHECKING)."""
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return names


@pytest.mark.parametrize("system", DOORS)
def test_an_outside_system_has_one_door(system: str) -> None:
    for path in sorted(ROOT.glob("mlops/**/*.py")):
        place = path.relative_to(ROOT / "mlops").as_posix()
        if system in imported_names(path):
            assert any(door in f"/{place}" for door in DOORS[system]), f"mlops/{place} imports {system}"


def test_the_server_imports_nothing_of_the_machine() -> None:
    heavy = {"mlops", "torch", "ray", "mlflow", "pydantic", "pandas"}
    for path in sorted(ROOT.glob("mlops/serving/server/*.py")):
        tree = ast.parse(path.read_text())
        absolute = {
            node.module.partition(".")[0] if node.module.partition(".")[0] != "mlops" else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        }
        outside = {name for name in absolute if not name.startswith("mlops.serving.server")}
        assert not {name.partition(".")[0] for name in outside} & heavy, path


def test_the_lock_leaves_out_what_ray_would_load_slowly_in_each_process() -> None:
    """`jsonschema`, which Ray loads, takes it when it is there: its import compiles a grammar, for a second."""
    assert "rfc3987-syntax" not in (ROOT / "requirements.lock").read_text()
