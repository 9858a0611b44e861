"""Checks that installed packages offer."""

from pathlib import Path

import pytest

from mlops.evaluation.project_checks import _load_function
from mlops.evaluation.verdicts import NotEvaluableError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebodys_checks.py").write_text("def fair(evidence):\n    return []\nlimit = 3\n")
    meta = tmp_path / "somebodys_checks-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-checks\nVersion: 1.0\n")
    names = "fair = somebodys_checks:fair\nnumber = somebodys_checks:limit\nbroken = somebodys_other:gone\n"
    (meta / "entry_points.txt").write_text(f"[mlops.gate_checks]\n{names}")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_packages_function_is_found_by_its_entry_point(package: None) -> None:
    assert _load_function("package:fair", folder=None)(None) == []


@pytest.mark.parametrize(
    ("name", "said"), [("absent", "0 installed packages"), ("number", "is no function"), ("broken", "does not load")]
)
def test_what_is_no_check_says_so(package: None, name: str, said: str) -> None:
    with pytest.raises(NotEvaluableError, match=said):
        _load_function(f"package:{name}", folder=None)
