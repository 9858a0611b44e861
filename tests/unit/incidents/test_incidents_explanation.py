"""Training rows are people's data: who may see them is a matter of key and role, not of a name."""

from pathlib import Path

import pytest

from mlops.errors import ProvenanceError
from mlops.incidents.explanation import check_reader
from mlops.project.opening import Project, open_project
from mlops.provenance.keys import load_key, make_key


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "datasets.dvc").write_text("outs: []\n")
    (tmp_path / "deploy").mkdir()
    opened = open_project(tmp_path)
    for name in ("ada", "eve"):
        make_key(opened.places.keys_folder, name, clock=opened.clock)
    return opened


def write_roles(project: Project, entry: str) -> None:
    public = load_key(project.places.keys_folder, "ada").public
    text = f"version: 1\npeople:\n  ada: {entry.replace('KEY', public)}\n"
    (project.places.root / "deploy" / "roles.yaml").write_text(text)


CASES = {
    "a person with the role": ("{keys: ['KEY'], roles: [data-reader]}", ()),
    "a person without the role": ("{keys: ['KEY'], roles: [approver]}", ("role-missing",)),
    "a key that has ended": ("{keys: [{public: 'KEY', until: 2020-01-01}], roles: [data-reader]}", ("key-ended",)),
    "a stolen key": ("{keys: [{public: 'KEY', revoked: true}], roles: [data-reader]}", ("key-ended",)),
    "a key that nobody has": ("{roles: [data-reader]}", ("unknown-key",)),
}


@pytest.mark.parametrize("case", CASES)
def test_only_a_valid_key_with_the_role_sees_training_rows(project: Project, case: str) -> None:
    entry, codes = CASES[case]
    write_roles(project, entry)
    assert tuple(reason.code for reason in check_reader(project, "ada")) == codes
    assert [reason.code for reason in check_reader(project, "eve")] == ["unknown-key"]
    with pytest.raises(ProvenanceError, match="no key"):
        check_reader(project, "nobody")
