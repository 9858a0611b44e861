"""The server is copied into the image alone: it may import only itself, the standard library and what lies there."""

import ast
import sys
from pathlib import Path

from mlops.serving import server
from mlops.serving.python_wheels import load_wheel_lock

_FOLDER = Path(server.__file__).parent


def test_the_server_imports_only_what_is_in_the_image():
    shipped = {wheel.name.replace("-", "_") for wheel in load_wheel_lock()}
    with_torch = {wheel.name for wheel in load_wheel_lock("wheels-torch-cp311-x86_64.txt")}
    for path in sorted(_FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} leaves its package"
                names = [] if node.level else [str(node.module).partition(".")[0]]
            else:
                continue
            more = with_torch if path.name == "torch_model.py" else set()
            assert set(names) <= shipped | more | sys.stdlib_module_names, path.name


def test_the_server_is_flat():
    assert not [path for path in _FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__"]
