"""Entering keys into roles.yaml as people write it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from mlops.errors import ProjectError
from mlops.overview.key_entry import EMPTY_FILE, KeyEntry, add_key_entry, enter_keys

KEY, OTHER = "ed25519:" + "A" * 43 + "=", "ed25519:" + "B" * 43 + "="

FILES = {
    "an empty file": "",
    "the file we start with": EMPTY_FILE,
    "empty sections": "version: 1\npeople: {}\n#  ada:\n#    keys: []\nmachines: {}\n",
    "a section without a value": "version: 1\npeople:\nmachines: {}\n",
    "a section without a value at the end": "version: 1\npeople:",
    "somebody else": f"version: 1\npeople:\n  # the boss\n  bob:\n    roles: [approver]\n    keys: [{OTHER!r}]\n",
    "the same person with a list": f"people:\n  ada:\n    keys:\n      - {OTHER}  # old laptop\n    roles: []\n",
    "the same person with a flow list": f"version: 1\npeople:\n  ada: {{keys: [{OTHER!r}], roles: [approver]}}\n",
    "the same person with an empty list": "version: 1\npeople:\n  ada:\n    keys: []\n    emails: [a@b.c]\n",
    "the same person without keys": "version: 1\npeople:\n  ada:\n    emails: [a@b.c]\n",
    "the same person with a key that ends": f"people:\n    ada:\n        keys:\n        - {{public: {OTHER!r}}}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_key_is_entered_and_all_else_kept(name: str) -> None:
    text = FILES[name]
    edited = add_key_entry(text, KeyEntry("people", "ada", KEY, roles=("approver",), emails=("ada@x.org",)))
    before, after = yaml.safe_load(text) or {}, yaml.safe_load(edited)
    assert KEY in after["people"]["ada"]["keys"]
    people = dict(after["people"])
    ada = dict(people.pop("ada"))
    was = dict(before.get("people") or {})
    old = dict(was.pop("ada", {"roles": ["approver"], "emails": ["ada@x.org"]}))
    assert people == was
    assert {key: value for key, value in ada.items() if key != "keys"} == {k: v for k, v in old.items() if k != "keys"}
    assert [key for key in ada["keys"] if key != KEY] == list(old.get("keys") or [])
    for line in text.split("\n"):
        assert "#" not in line or line.split("#")[1] in edited
    assert add_key_entry(edited, KeyEntry("people", "ada", KEY)) == edited


def test_a_machine_has_keys_only() -> None:
    edited = add_key_entry(EMPTY_FILE, KeyEntry("machines", "builder-1", KEY))
    assert yaml.safe_load(edited)["machines"] == {"builder-1": {"keys": [KEY]}}


def test_a_form_that_cannot_be_edited_says_what_to_add() -> None:
    with pytest.raises(ProjectError) as caught:
        add_key_entry(f"people: {{bob: {{keys: [{OTHER!r}]}}}}\n", KeyEntry("people", "ada", KEY))
    assert any(KEY in item for item in caught.value.items)


@pytest.mark.parametrize("text", ["- a\n", "people: [\n"])
def test_a_broken_file_is_refused(text: str) -> None:
    with pytest.raises(ProjectError):
        add_key_entry(text, KeyEntry("people", "ada", KEY))


def test_two_at_once_lose_nobody(tmp_path: Path) -> None:
    path, lock = tmp_path / "roles.yaml", tmp_path / "roles.lock"
    ada, bob = (KeyEntry("people", name, key) for name, key in (("ada", KEY), ("bob", OTHER)))
    other = threading.Thread(target=enter_keys, args=(path, [bob]), kwargs={"lock": lock})
    with FileLock(lock):  # we are between reading and writing
        other.start()
        other.join(0.3)
        path.write_text(add_key_entry(EMPTY_FILE, ada), encoding="utf-8")
    other.join(30)
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))["people"]) == {"ada", "bob"}
