"""The choke point: only an image with a valid signed promotion into this very environment is admitted."""

import pytest
from deploy_fakes import make_rules

from mlops.deploy import sql_deployments
from mlops.deploy.admission import Admission, admit
from mlops.deploy.promoting import promote
from mlops.deploy.sql_deployments import BarredRow
from mlops.provenance.digest import hex_of
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import make_key


def ask(world, image, *, environment="production", keyring=None):
    with world.site.ledger.read() as connection:
        return admit(
            connection,
            image,
            environment=environment,
            places=world.site.places,
            keyring=keyring or world.site.load_keyring(),
        )


def change_row(world, statement):
    with world.site.ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def bar(world, image):
    with world.site.ledger.write() as transaction:
        sql_deployments.bar_digest(transaction, BarredRow("production", image, transaction.now_us, "x", "died"))


def stranger(world):
    return KeyRing([AcceptedKey(make_key(world.root / "elsewhere", "eve", clock=world.site.clock).public, "eve")])


def forge(world, image):
    """A promotion step signed by a person's key instead of the machine's."""
    world.add_person("ada")
    old, new = "'keyid\":\"ed25519:'", "'keyid\":\"ed25519:A'"
    change_row(world, f"UPDATE steps SET envelope = replace(envelope, {old}, {new}) WHERE kind = 'promotion'")


CASES = {
    "promoted here": (lambda world, image: ask(world, image), None),
    "promoted elsewhere": (lambda world, image: ask(world, image, environment="staging"), "not-admitted"),
    "never promoted": (lambda world, image: ask(world, world.release(2)), "not-admitted"),
    "signed by a key that counts for nothing": (
        lambda world, image: ask(world, image, keyring=stranger(world)), "not-admitted",
    ),
    "signed with another key id": (lambda world, image: [forge(world, image), ask(world, image)][1], "not-admitted"),
    "its row was changed": (
        lambda world, image: [
            change_row(world, "UPDATE steps SET facts = replace(facts, '100', '101') WHERE kind = 'promotion'"),
            ask(world, image),
        ][1],
        "not-admitted",
    ),
    "it failed here": (lambda world, image: [bar(world, image), ask(world, image)][1], "barred"),
    "a blob is gone": (
        lambda world, image: [
            (world.site.places.images / "blobs/sha256" / hex_of(image)).unlink(), ask(world, image),
        ][1],
        "image-changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_admission(case, world):
    act, code = CASES[case]
    image = world.release(1)
    promote(world.site, make_rules(), "income@1")
    answer = act(world, image)
    if code is None:
        assert isinstance(answer, Admission)
        assert answer.number == 1
    else:
        assert [reason.code for reason in answer.reasons] == [code]
