"""Every name that a step of a release gives to an input is known to the chain; else nothing of it could be promoted."""

import ast
from pathlib import Path

from mlops.provenance.verify import EXTERNAL_INPUTS

ROOT = Path(__file__).parents[3]


def _step_files() -> list[Path]:
    """The `step_*.py` that a release or an erasure's retrain runs."""
    found = set()
    for name in ("mlops/release.py", "mlops/erasure/retraining.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("step_"):
                found.add(ROOT / f"{node.module.replace('.', '/')}.py")
    return sorted(found)


def _keys(value: ast.expr) -> set[str]:
    """Of a dictionary, also of those that are laid over it under a condition."""
    return {
        key.value
        for part in ast.walk(value)
        if isinstance(part, ast.Dict)
        for key in part.keys
        if isinstance(key, ast.Constant)
    }


def _names_in(path: Path) -> tuple[set[str], set[str]]:
    """Names of inputs, and of outputs."""
    inputs: set[str] = set()
    outputs: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["inputs"]:
            inputs |= {name for name in _keys(node.value) if name.isidentifier()}
        if isinstance(node, ast.keyword) and node.arg == "outputs":
            outputs |= _keys(node.value)
    return inputs, outputs


def test_each_input_of_a_release_is_made_by_a_step_or_comes_from_outside():
    names = {path.name: _names_in(path) for path in _step_files()}
    assert {"step_export.py", "step_gate.py", "step_image.py", "step_import.py", "step_source.py"} <= set(names)
    assert {"weights_as", "export_as", "manifest"} <= names["step_export.py"][0]
    made = set().union(*(outputs for _, outputs in names.values()))
    made.add("source_report")  # the source check itself calls it `report`
    unknown = {name: inputs - made - EXTERNAL_INPUTS for name, (inputs, _) in names.items()}
    assert {name: left for name, left in unknown.items() if left} == {}
