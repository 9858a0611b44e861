"""Only a signed purge makes a digest erased; an erased image is admitted nowhere."""

import pytest
from deploy_fakes import make_rules

from mlops.deploy.admission import admit
from mlops.deploy.erased import load_erased, record_purge
from mlops.deploy.promoting import promote
from mlops.errors import Refusal
from mlops.provenance.digest import digest_bytes

MANIFEST = digest_bytes(b"manifest")


def purge(world, *digests):
    return record_purge(world.site.step_book, dataset="people", manifests=[MANIFEST], erased=digests, started_us=1)


def erased(world):
    with world.site.ledger.read() as connection:
        return load_erased(connection, keyring=world.site.load_keyring())


def change(world, statement):
    with world.site.ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_a_purge_is_recorded_once_per_set_of_digests(world):
    first, second = digest_bytes(b"1"), digest_bytes(b"2")
    assert purge(world, first) == purge(world, first) != purge(world, first, second)
    assert set(erased(world)) == {first, second}


FORGERIES = {
    "a digest slipped into its facts": f"UPDATE steps SET facts = replace(facts, '{digest_bytes(b'1')}', '{MANIFEST}')",
    "no signature": "UPDATE steps SET envelope = NULL WHERE kind = 'erasure-purge'",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_purge_that_was_changed_or_is_not_signed_erases_nothing(world, forgery):
    purge(world, digest_bytes(b"1"))
    change(world, FORGERIES[forgery])
    assert erased(world) == {}


def test_an_erased_image_is_admitted_nowhere_although_it_was_promoted(world):
    image = world.release(1)
    promote(world.site, make_rules(), "income@1")
    step_id = purge(world, image)
    with world.site.ledger.read() as connection:
        answer = admit(
            connection, image, environment="production", places=world.site.places, keyring=world.site.load_keyring()
        )
    assert isinstance(answer, Refusal)
    assert [reason.code for reason in answer.reasons] == ["erased"] and step_id in answer.reasons[0].text
