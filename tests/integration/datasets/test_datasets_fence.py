"""From the moment of a withdrawal nothing new is made of a person, until the version that forgets them is there."""

import pytest

from mlops.datasets.fence import find_training_fence, find_withdrawn
from mlops.datasets.forgetting import find_holdings, forget_subjects, purge_shards
from mlops.datasets.importing import import_dataset
from mlops.datasets.subjects import hash_subject
from mlops.datasets.tombstones import load_tombstones, pending_file, withdraw_subjects
from mlops.datasets.version import load_dataset_version
from mlops.errors import DatasetError


@pytest.fixture
def subjects(people):
    import_dataset(people.places, "people")
    return sorted({hash_subject(row["person"], key=b"test") for row in people.rows})


def test_a_withdrawal_fences_the_pinned_version_until_the_person_left_it(people, subjects):
    places, stranger = people.places, hash_subject("nobody", key=b"test")
    before = load_dataset_version(places, "people")
    assert find_training_fence(places, before, purpose="model_training") is None
    refused = find_training_fence(places, before, purpose="advertising")
    assert refused is not None and refused.reasons[0].code == "purpose-not-allowed"
    withdraw_subjects(places, "people", [subjects[0], subjects[1], stranger])
    assert find_withdrawn(places, before) == frozenset(subjects[:2])
    refused = find_training_fence(places, before)
    assert [reason.code for reason in refused.reasons] == ["withdrawn-people"]
    assert "2 people" in refused.reasons[0].text
    forget_subjects(places, "people", subjects[:2])
    after = load_dataset_version(places, "people")
    assert find_training_fence(places, after) is None
    withdraw_subjects(places, "people", [subjects[2]])
    assert find_training_fence(places, after) is not None
    assert find_training_fence(places, after, subjects=subjects[:2]) is None, "a batch at work asks for its own people"
    assert find_withdrawn(places, before) == frozenset(subjects[:3]), "the old version stays fenced"
    held = find_holdings(places, "people", subjects[0]) + find_holdings(places, "people", subjects[1])
    purge_shards(places, "people", {holding.shard.md5: holding.shard for holding in held}.values())
    assert find_withdrawn(places, before) <= {subjects[2]}


def test_an_import_leaves_a_withdrawn_person_out_and_says_why_it_differs(people, subjects):
    withdraw_subjects(people.places, "people", [subjects[0]])
    with pytest.raises(DatasetError) as caught:
        import_dataset(people.places, "people")
    assert "mlops erasure run people" in caught.value.hint


def test_a_line_torn_by_a_crash_hides_no_other_withdrawal(people, subjects):
    withdraw_subjects(people.places, "people", [subjects[0]])
    with pending_file(people.places, "people").open("a") as stream:
        stream.write(subjects[1].hex()[:10])
    withdraw_subjects(people.places, "people", [subjects[2]])
    assert load_tombstones(people.places, "people") == {subjects[0], subjects[2]}
