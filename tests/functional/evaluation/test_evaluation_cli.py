"""`mlops gate` on the command line: what it refuses before it judges anything."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from mlops.cli.gate import gate
from mlops.errors import ProjectError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "income.yaml").write_text("version: 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG = {
    "neither product nor candidate": (["run"], "name a product or a candidate"),
    "an unknown product": (["run", "ghost"], "unknown product"),
    "a product without a candidate": (["run", "income"], "there is no candidate"),
    "a result that does not exist": (["show", "income"], "no gate result"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_one_sentence(project: Path, case: str) -> None:
    arguments, words = WRONG[case]
    result = CliRunner().invoke(gate, arguments)
    assert isinstance(result.exception, ProjectError)
    assert words in result.exception.message
