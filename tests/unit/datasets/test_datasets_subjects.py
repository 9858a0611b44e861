import hashlib
import hmac

import pytest

from mlops.datasets.schema import SubjectKey
from mlops.datasets.subjects import group_of, hash_subject, hash_subjects, load_subject_key
from mlops.errors import DatasetError
from mlops.places import Places


def test_the_hash_is_hmac_sha256():
    expected = hmac.new(b"k", b"ann", hashlib.sha256).digest()
    assert hash_subject("ann", key=b"k") == expected
    assert hash_subjects(["ann"], key=b"k") == [expected]
    assert hash_subject("ann", key=b"other") != expected


def test_the_group_is_the_first_eight_bytes_mod_groups():
    assert group_of(bytes([0] * 7 + [9]) + bytes(24), groups=8) == 1


def test_a_key_is_public_or_from_the_environment_or_a_file(tmp_path, monkeypatch):
    places = Places(tmp_path)
    assert load_subject_key(places, SubjectKey(public="k")) == b"k"
    secret = SubjectKey(secret="PEOPLE_KEY")
    with pytest.raises(DatasetError, match="the subject key PEOPLE_KEY is missing"):
        load_subject_key(places, secret)
    places.keys_folder.mkdir(parents=True)
    (places.keys_folder / "PEOPLE_KEY").write_text("from file\n")
    assert load_subject_key(places, secret) == b"from file"
    monkeypatch.setenv("PEOPLE_KEY", "from environment")
    assert load_subject_key(places, secret) == b"from environment"


@pytest.mark.parametrize("name", ["../machine", "lower", "A"])
def test_a_secret_is_a_name_and_never_a_path(tmp_path, name):
    with pytest.raises(DatasetError, match="is not a secret's name"):
        load_subject_key(Places(tmp_path), SubjectKey(secret=name))
