"""The documents say what the code does: the picture's steps, the links, the commands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mlops.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def step_names() -> list[str]:
    """Keys of `STEPS` in mlops/release.py, read without importing it."""
    tree = ast.parse((ROOT / "mlops" / "release.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "STEPS":
            assert isinstance(node.value, ast.Dict)
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    raise AssertionError("mlops/release.py has no STEPS")


def test_the_picture_shows_the_steps_of_a_release_in_their_order():
    picture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
    shown = dict(re.findall(r"(?:\[|\{)\"(\d) ([a-z ]+)<br>", picture))
    names = step_names()
    assert shown == {str(number): name for number, name in enumerate(names, start=1)}
    arrows = re.findall(r"\bs(\d)(?:\[.*?\]|\{.*?\})? -(?:- PASS -)?-> s(\d)", picture)
    assert sorted(arrows) == [(str(n), str(n + 1)) for n in range(1, len(names))]


def test_every_relative_link_of_a_document_leads_somewhere():
    broken = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text(encoding="utf-8")):
            if not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_command_that_a_document_shows_exists():
    unknown = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            for noun in re.findall(r"^(?:\$ )?mlops ([a-z]+)\b", block, flags=re.MULTILINE):
                if noun not in COMMANDS:
                    unknown.append(f"{document.relative_to(ROOT)}: mlops {noun}")
    assert unknown == []
