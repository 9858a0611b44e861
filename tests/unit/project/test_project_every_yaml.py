"""Every YAML file of this repository, and every YAML example of its documents, is one that the machine accepts.

The template's files are checked by examining a project made of them (test_project_file_examination.py).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mlops.budgets.spec import BudgetSpec, RatesSpec
from mlops.datasets.recipe import Recipe
from mlops.datasets.schema import Schema
from mlops.deploy.consumer import ConsumerSpec
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.erasure_rules import ErasureSpec
from mlops.deploy.roles import RolesSpec
from mlops.errors import ProjectError
from mlops.evaluation.policy import Policy
from mlops.places import Places
from mlops.project.file_examination import examine_files
from mlops.serving.deploy_spec import DeploySpec
from mlops.specs import Spec, parse_spec
from mlops.training.spec import SweepSpec

ROOT = Path(__file__).parents[3]
KINDS: tuple[type[Spec], ...] = (
    SweepSpec, Policy, Recipe, Schema, BudgetSpec, RatesSpec, EnvironmentSpec, RolesSpec, ConsumerSpec, DeploySpec,
    ErasureSpec,
)  # fmt: skip


def list_files() -> list[str]:
    """Files that are tracked or about to be."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def find_examples() -> Iterator[tuple[str, str]]:
    """(where, text) of every fenced YAML block of the documents that is a whole file."""
    for name in list_files():
        if not name.endswith(".md") or name.startswith("mlops/project/template"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        for match in re.finditer(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            yield f"{name}:{text[: match.start()].count(chr(10)) + 2}", match[1]


EXAMPLES = dict(find_examples())


def test_this_repositorys_own_project_is_fine():
    found = [one for one in examine_files(Places(ROOT)) if one.status == "broken"]
    assert found == []


def test_every_yaml_file_is_one_that_something_reads():
    seen = {one.subject for one in examine_files(Places(ROOT))}
    template = "mlops/project/template/"
    strangers = [
        name
        for name in list_files()
        if name.endswith((".yaml", ".yml")) and name not in seen and not name.startswith((template, ".github/"))
    ]
    assert strangers == []


def test_every_yaml_file_is_valid_yaml_without_repeated_keys():
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice"
            return super().construct_mapping(node, deep)

    for name in list_files():
        if name.endswith((".yaml", ".yml")):
            yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader=Strict)


@pytest.mark.parametrize("where", sorted(EXAMPLES))
def test_an_example_of_the_documents_is_accepted(where: str):
    content = yaml.safe_load(EXAMPLES[where])
    if not (isinstance(content, dict) and "version" in content):
        return  # a part of a file: shown for its form, not meant to stand alone
    problems = {}
    for kind in KINDS:
        try:
            parse_spec(EXAMPLES[where], kind, source=where)
        except ProjectError as error:
            problems[kind.__name__] = error.items
        else:
            return
    closest = min(problems, key=lambda name: len(problems[name]))
    raise AssertionError(f"no kind of file accepts it; closest is {closest}: {problems[closest]}")
