"""What is found in a product's source before money is spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops.errors import TrainingError
from mlops.places import Places
from mlops.training.source_check import TreeState, check_source, judge_lock
from mlops.training.source_licences import LockedDistribution, judge_licence, read_lock

CLEAN = "import torch\n\n\ndef model(params):\n    return torch.nn.Linear(1, 2)\n"
AWS = "AKIA" + "IOSFODNN7ABCDEFG"  # in two pieces, so that this file itself holds no secret


def make_project(root: Path, *, trainer: str = CLEAN, lock: str = "click==0\n", **files: str) -> Places:
    for name, text in {"training/income.py": trainer, "requirements.lock": lock, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Places(root)


def find(places: Places, code: str) -> list[tuple[str, int, bool]]:
    report = check_source(places, product="income")
    return [(found.path, found.line, found.is_blocking) for found in report.findings if found.code == code]


BAD_TRAINERS = {
    "unpickles": ("import pickle\n\n\ndef model(p):\n    return pickle.loads(p)\n", "insecure-code", 5),
    "evaluates text": ("def model(p):\n    return eval(p)\n", "insecure-code", 2),
    "calls a shell": ("import os\n\nos.system('ls ' + input())\n", "insecure-code", 3),
    "is not Python": ("def model(p:\n    return 1\n", "syntax-error", 1),
    "holds a key": (f"KEY = '{AWS}'\n", "secret", 1),
}


@pytest.mark.parametrize("case", BAD_TRAINERS)
def test_a_trainer_that(case: str, tmp_path: Path):
    text, code, line = BAD_TRAINERS[case]
    found = find(make_project(tmp_path, trainer=text), code)
    assert ("training/income.py", line, True) in found


def test_a_clean_trainer_has_no_finding_of_its_own(tmp_path: Path):
    report = check_source(make_project(tmp_path), product="income")
    assert [finding.code for finding in report.findings] == ["lock-differs"]  # click is not 0


def test_an_excused_line_is_reported_but_does_not_block(tmp_path: Path):
    text = "def model(p):\n    return eval(p)  # noqa: S307 - reviewed: p is a literal of ours\n"
    assert find(make_project(tmp_path, trainer=text), "insecure-code") == [("training/income.py", 2, False)]


def test_a_project_check_is_searched_too_and_configuration_cannot_switch_the_rules_off(tmp_path: Path):
    files = {"evaluation/checks/own.py": "import os\nos.system(input())\n", "ruff.toml": "exclude = ['*']\n"}
    places = make_project(tmp_path, **files)
    assert ("evaluation/checks/own.py", 2, True) in find(places, "insecure-code")


def test_a_secret_in_a_project_file_blocks_with_its_line(tmp_path: Path):
    places = make_project(tmp_path, **{"deploy/income.yaml": f"version: 1\nkey: {AWS}\n"})
    assert find(places, "secret") == [("deploy/income.yaml", 2, True)]


def test_digests_in_project_files_are_no_secrets(tmp_path: Path):
    text = f"subject_key: {'ab' * 32}\nmd5: {'0f' * 16}.dir\nimage: sha256:{'3e' * 32}\n"
    assert find(make_project(tmp_path, **{"deploy/desired/staging.yaml": text}), "secret") == []


def test_public_keys_and_names_of_secrets_are_no_secrets(tmp_path: Path):
    texts = {
        "datasets/churn.yaml": "subject_key: {public: churn-example}\n",
        "datasets/real.yaml": "subject_key: {secret: CHURN_SUBJECT_KEY}\n",
        "deploy/roles.yaml": f"people: {{ada: {{private_key: 'ed25519:{'A' * 43}='}}}}\n",
    }
    assert find(make_project(tmp_path, **texts), "secret") == []


def test_only_the_named_files_are_searched_when_they_are_named(tmp_path: Path):
    places = make_project(tmp_path, **{"deploy/scratch.yaml": f"key: {AWS}\n"})
    report = check_source(places, product="income", tracked_files=["training/income.py"])
    assert report.files_searched == 1
    assert not [finding for finding in report.findings if finding.code == "secret"]


def test_a_missing_lock_blocks_and_a_missing_trainer_is_an_error(tmp_path: Path):
    places = make_project(tmp_path, lock="")
    assert find(places, "lock-missing") == [("requirements.lock", 0, True)]
    with pytest.raises(TrainingError, match=r"other\.py"):
        check_source(places, product="other")


def test_equal_sources_give_equal_reports_and_a_refusal_names_every_blocking_finding(tmp_path: Path):
    text = "import os\nos.system(input())\neval(input())\n"
    first = check_source(make_project(tmp_path / "a", trainer=text), product="income")
    again = check_source(make_project(tmp_path / "b", trainer=text), product="income")
    other = check_source(make_project(tmp_path / "c"), product="income")
    assert first.digest == again.digest != other.digest
    refusal = first.refusal()
    assert refusal is not None
    assert len(refusal.reasons) == sum(finding.is_blocking for finding in first.findings) >= 3


LICENCES = {
    "MIT": True,
    "BSD License": True,
    "Apache-2.0 OR GPL-2.0-or-later": True,
    "Apache-2.0 AND MIT": True,
    "MPL-2.0 AND (Apache-2.0 OR MIT)": True,
    "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0": True,
    "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSL-1.0": True,
    "BSD License; Apache Software License": True,
    "MIT-CMU": True,
    "GPL-3.0-only": False,
    "MIT AND GPL-2.0-only": False,
    "GNU Affero General Public License v3": False,
    "MIT License; GNU General Public License v2 (GPLv2)": False,
    "LGPL-3.0-only": False,
    "Proprietary": False,
    "SSPL-1.0": False,
    "BUSL-1.1": False,
    "": False,
    "see the web site": False,
}


@pytest.mark.parametrize("licence", LICENCES)
def test_a_licence_is_judged(licence: str):
    assert (judge_licence("some-package", licence) == "") is LICENCES[licence]


def test_an_exception_is_by_name_only():
    assert judge_licence("psycopg", "LGPL-3.0-only") == ""
    assert judge_licence("psycopg2", "LGPL-3.0-only") != ""
    assert judge_licence("nvidia_cudnn-cu13", "LicenseRef-NVIDIA-Proprietary") == ""
    assert judge_licence("not-nvidia-cudnn", "LicenseRef-NVIDIA-Proprietary") != ""


def test_a_locked_version_that_is_not_the_installed_one_blocks_and_a_local_tag_does_not():
    lock = [
        LockedDistribution(name="a", locked="1.0", installed="1.1", licence="MIT"),
        LockedDistribution(name="torch", locked="2.13.0", installed="2.13.0+cpu", licence="MIT"),
        LockedDistribution(name="b", locked="1.0", installed=None, licence=""),
    ]
    assert [(finding.code, finding.text.split()[0]) for finding in judge_lock(lock, path="lock")] == [
        ("lock-differs", "a")
    ]


def test_a_lock_is_read_line_by_line():
    locked = read_lock("# comment\nclick==8.5.0\nnot-there-at-all==1.0 ; sys_platform == 'win32'\n--no-binary x\n")
    assert [(one.name, one.locked, one.installed is None) for one in locked] == [
        ("click", "8.5.0", False),
        ("not-there-at-all", "1.0", True),
    ]


def test_a_dirty_tree_is_refused_unless_allowed():
    clean = TreeState(commit="a" * 40, dirty_files=())
    dirty = TreeState(commit="a" * 40, dirty_files=tuple(f"file-{number}" for number in range(7)))
    assert clean.refusal(allow_dirty=False) is None
    assert dirty.refusal(allow_dirty=True) is None
    refusal = dirty.refusal(allow_dirty=False)
    assert refusal is not None
    assert refusal.reasons[0].code == "dirty-tree"
    assert "7 files" in refusal.reasons[0].text
    assert "file-0" in refusal.reasons[0].text
