"""Signed requests over HTTP: forged, replayed, old and too many; the same answer for known and unknown people."""

import asyncio

import httpx
import pytest
import yaml
from erasure_fakes import DATASET

from mlops.clock import FakeClock
from mlops.erasure.intake import open_intake
from mlops.erasure.tickets import sign_ticket
from mlops.provenance.keys import make_key


@pytest.fixture
def keys(tmp_path):
    return {name: make_key(tmp_path / "keys", name, clock=FakeClock()) for name in ("shop", "thief")}


@pytest.fixture
def intake(world, keys):
    tenants = {"shop": {"keys": [keys["shop"].public], "per_minute": 5}}
    rules = world.project.places.root / "deploy" / "erasure.yaml"
    rules.write_text(yaml.safe_dump({"version": 1, "tenants": tenants}))
    return open_intake(world.project)


def ask(intake, *bodies, path="/v1/requests"):
    async def send():
        transport = httpx.ASGITransport(app=intake)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await asyncio.gather(*(client.post(path, content=body) for body in bodies))

    return asyncio.run(send())


def ticket(intake, keys, **changes):
    content = {"tenant": "shop", "dataset": DATASET, "subject_id": "p1", "nonce": "n1", "key": keys["shop"]}
    return sign_ticket(**{**content, "issued_us": intake.project.clock.now_us(), **changes})


def test_known_and_unknown_people_get_the_same_answer_and_are_recorded(world, intake, keys):
    known, unknown = ask(intake, ticket(intake, keys), ticket(intake, keys, subject_id="nobody", nonce="n2"))
    assert known.status_code == unknown.status_code == 202
    assert known.json().keys() == unknown.json().keys() == {"receipt", "deadline"}
    assert known.json()["deadline"] == unknown.json()["deadline"]
    assert [row.channel for row in world.requests()] == ["tenant:shop"] * 2


def test_what_is_refused_and_how(world, intake, keys):
    old = intake.project.clock.now_us() - 600_000_000
    tampered = ticket(intake, keys, nonce="n3").replace('"keyid"', '"keyid" ')
    answers = {
        "forged": ticket(intake, keys, key=keys["thief"]),
        "another tenant": ticket(intake, keys, tenant="bank"),
        "old": ticket(intake, keys, issued_us=old),
        "changed": tampered,
        "no request": b"{}",
        "unknown dataset": ticket(intake, keys, dataset="other"),
    }
    codes = {name: ask(intake, body)[0].status_code for name, body in answers.items()}
    assert codes == {
        "forged": 401, "another tenant": 401, "old": 401, "changed": 400, "no request": 400, "unknown dataset": 401,
    }  # fmt: skip
    assert world.requests() == ()


def test_a_replayed_ticket_counts_once(world, intake, keys):
    body = ticket(intake, keys)
    assert sorted(answer.status_code for answer in ask(intake, body, body)) == [202, 409]
    assert ask(intake, body)[0].status_code == 409
    assert len(world.requests()) == 1


def test_a_tenant_that_asks_too_much_is_told_when_to_come_again(world, intake, keys):
    answers = ask(intake, *(ticket(intake, keys, subject_id=f"p{n}", nonce=f"n{n}") for n in range(8)))
    late = [answer for answer in answers if answer.status_code == 429]
    assert len(late) == 3
    assert all(int(answer.headers["retry-after"]) >= 12 for answer in late)
    intake.project.clock.advance(60)
    assert ask(intake, ticket(intake, keys, nonce="again"))[0].status_code == 202
    assert len(world.requests()) == 5


def test_a_body_too_long_is_not_read_to_the_end(world, intake, keys):
    assert ask(intake, b"x" * 20_000)[0].status_code == 413
    assert ask(intake, b"", path="/")[0].status_code == 404
