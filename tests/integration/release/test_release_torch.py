"""A product whose model does not export, from `mlops init` and two lines to an environment that serves it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LOOP = """        row = torch.cat([(table - self.mean) / self.scale, *codes], 1)
        while bool((row.abs() > 4).any()):  # how often hangs on the data
            row = torch.where(row.abs() > 4, row / 2, row)
        return self.layers(row)
"""


class Project:
    """Made by `mlops init`, with this tree's store of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "loop"
        hidden = ("MLOPS_", "MLFLOW_", "RAY_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment["HOME"] = str(folder)
        self.run("init", "loop", folder=folder)
        store = ROOT / ".mlops" / "store"
        store.mkdir(parents=True, exist_ok=True)
        (self.folder / ".mlops" / "store").symlink_to(store)

    def run(self, *arguments: str, folder: Path | None = None, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mlops.cli", *arguments],
            cwd=folder or self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=1200,
        )  # fmt: skip
        assert done.returncode == code, f"mlops {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def change(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def commit(self) -> None:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "Change"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(1800)
def test_a_model_that_does_not_export_is_released_promoted_and_rebuilt(tmp_path):
    project = Project(tmp_path)
    table = "        return self.layers(torch.cat([(table - self.mean) / self.scale, *codes], 1))\n"
    project.change("training/loop.py", table, LOOP)
    project.commit()
    try:
        refused = project.run("release", "loop", code=1)
        assert "GuardOnDataDependent" in refused
        assert "`export: torch`" in refused
        project.change("training/loop.yaml", "seed: 1", "seed: 1\nexport: torch")
        assert "write `runtime: torch` under `image:`" in project.run("release", "loop", "--allow-dirty", code=2)
        project.change("deploy/loop.yaml", "image:", "image:\n  runtime: torch")
        project.commit()
        assert "released loop@1" in project.run("release", "loop")
        shown = json.loads(project.run("image", "show", "loop@latest", "--json"))
        layers = [layer["annotations"]["io.mlops.layer"] for layer in shown["manifest"]["layers"]]
        assert layers == ["base", "runtime", "torch", "app", "model"]
        assert "desired state of staging" in project.run("promote", "loop@latest", "--to", "staging")
        assert "every digest came out the same" in project.run("rebuild", "loop@1", "--check")
        project.run("model", "get", "loop@1", "fetched")
        loaded = [sys.executable, "-c", "import runpy; print(runpy.run_path('fetched/load.py')['model'])"]
        assert "Network(" in subprocess.run(loaded, cwd=project.folder, capture_output=True, text=True).stdout
        shutil.rmtree(project.folder / "fetched")
        if shutil.which("haproxy") and (shutil.which("podman") or shutil.which("bwrap")):
            assert "version 1 serves 100 %" in project.run("deploy", "reconcile", "staging")
            assert re.search(r"staging +loop +1 +100 %", project.run("deploy", "status"))
    finally:
        project.run("deploy", "stop")
        project.run("stop")
