"""A batch from request to certificate, with models that are notes in memory and everything else real."""

import json

import pytest
from erasure_fakes import DATASET, RECIPE, Killed, make_erasure_world, restart

from mlops.clock import DAY_US
from mlops.datasets.fence import find_withdrawn
from mlops.datasets.version import load_dataset_version
from mlops.deploy.chain_rules import load_chain_rules, load_machine_keyring
from mlops.deploy.erased import load_erased, record_purge
from mlops.erasure.batches import STEPS
from mlops.erasure.certificate import parse_certificate
from mlops.erasure.requests import move_request
from mlops.erasure.running import publish_certificates
from mlops.errors import Reason, Refusal
from mlops.ledger.sql_events import load_events
from mlops.provenance.digest import digest_json
from mlops.provenance.verify import verify_chain


def test_a_person_leaves_data_and_model_and_everybody_gets_a_certificate(world):
    before = load_dataset_version(world.project.places, DATASET)
    world.ask("p1", "p2", "nobody")
    outcome = world.run()
    assert outcome.held is None
    after = load_dataset_version(world.project.places, DATASET)
    assert before.manifest.rows - after.manifest.rows == 4
    assert world.work.environments == {"production": 2}
    assert {row.state for row in world.requests()} == {"certified"}
    predicate = parse_certificate(world.certificates()[0].envelope).predicate
    assert predicate["data"]["rows_removed"] == 4
    assert predicate["data"]["after"]["digest"] == after.digest
    assert len(predicate["requests"]) == 3
    assert all(it["is_in_time"] for it in predicate["requests"])
    text = world.certificates()[0].envelope + json.dumps(predicate)
    assert world.hash("p1").hex() not in text
    copies = list((world.project.places.state / "certificates").glob("*.json"))
    assert [copy.read_text() for copy in copies] == [world.certificates()[0].envelope]


def test_the_certificate_names_every_version_that_was_trained_on_them_and_what_replaced_it(world):
    world.work.release()
    world.ask("p1")
    world.run()
    models = parse_certificate(world.certificates()[0].envelope).predicate["models"]
    assert [(it["number"], it["replaced_by"]) for it in models] == [(1, 3), (2, 3)]


def test_what_was_purged_is_known_by_its_certificate_as_soon_as_there_is_one(world):
    book, places = world.project.step_book, world.project.places
    purged, later = digest_json("model 1"), digest_json("model 2")

    def under(digest):
        with world.project.ledger.read() as connection:
            return load_erased(connection, keyring=load_machine_keyring(places))[digest].under

    world.ask("p1")
    record_purge(book, dataset=DATASET, manifests=[], erased=[purged], started_us=1)
    assert under(purged).startswith("purge (step")
    world.run()
    record_purge(book, dataset=DATASET, manifests=[], erased=[later], started_us=1)
    publish_certificates(world.project)
    assert under(purged).startswith("certificate 1 (step")
    assert under(later).startswith("purge (step"), "the first certificate knew nothing of it"
    world.ask("p2")
    world.run(ordered="the authority asked")
    assert under(later).startswith("certificate 2 (step")
    certificate = world.certificates()[0].digest
    with world.project.ledger.read() as connection:
        assert verify_chain(connection, [certificate], rules=load_chain_rules(places)).is_verified


def test_rows_past_their_retention_join_the_batch_by_themselves(tmp_path):
    since = {"name": "since", "from": "age", "kind": "number", "roles": ["time"]}
    recipe = {"retention_days": 20_833, "columns": [*RECIPE["columns"], since]}
    world = make_erasure_world(tmp_path / "project", recipe=recipe)
    world.project.clock.jump(30 - 28_800)  # rows from before second 30 of 1970 are past it: the first ten
    world.ask("p11")
    assert world.run().held is None
    answered = {row.subject for row in world.requests(states=["certified"])}
    assert answered == {world.hash(f"p{number}").hex() for number in (*range(10), 11)}
    pinned = load_dataset_version(world.project.places, DATASET)
    assert pinned.manifest.rows == 2
    assert world.run().held.reasons[0].code == "nothing-open", "once is enough"
    world.project.ledger.close()


def test_a_batch_that_is_stuck_excuses_no_deadline_of_those_who_wait_behind_it(world):
    world.ask("p1")
    world.work.is_store_down = True
    assert world.run().held.reasons[0].code == "not-purged"
    world.ask("p2")
    world.project.clock.advance(32 * 86_400)
    assert world.run().held.reasons[0].code == "not-purged"
    assert world.work.environments == {"production": 0}, "version 2 was trained on p2"


@pytest.mark.parametrize("refusal", [None, Refusal((Reason("cap-exceeded", "the budget is spent"),))])
def test_a_batch_that_ends_late_leaves_nobody_due_behind_what_it_deployed(world, refusal):
    """Version 2 replaces version 1 after the deadline of people who asked while it was made."""

    def hook(name):
        if name == "before-retrain-p" and not world.work.retrains:
            raise Killed

    world.ask("p1")
    with pytest.raises(Killed):
        world.run(hook=hook)
    again = restart(world)
    again.ask("p2")
    again.project.clock.advance(32 * 86_400)

    def refuse_second(name):
        if name == "before-gathering":
            again.work.refusal = refusal

    outcome = again.run(hook=refuse_second)
    assert (outcome.held is None) == (refusal is None)
    assert again.work.environments == {"production": 3 if refusal is None else 0}, "version 2 was trained on p2"


@pytest.mark.parametrize(
    "point", [*(f"before-{state}" for state in STEPS), "before-retrain-p"], ids=lambda name: name.replace("-", " ")
)
def test_killed_anywhere_the_next_run_goes_on_and_nothing_is_done_twice(world, point):
    world.ask("p1")

    def hook(name):
        if name == point:
            raise Killed

    with pytest.raises(Killed):
        world.run(hook=hook)
    again = restart(world)
    assert again.run().held is None
    assert len(again.work.retrains) == 1
    assert again.work.environments == {"production": 2}
    assert len(again.certificates()) == 1


def test_a_second_request_joins_the_open_one_and_a_replay_is_refused(world):
    first, second = world.ask("p1", "p1")
    assert first.request_id == second.request_id
    assert first.receipt_id != second.receipt_id
    assert len(world.requests()) == 1
    from mlops.erasure.requests import Submission, submit_requests

    entry = Submission(world.hash("p2"), "tenant:shop", "nonce-7")
    accepted, replayed = submit_requests(world.project, DATASET, [entry, entry])
    assert not isinstance(accepted, Refusal)
    assert replayed.reasons[0].code == "replayed"


def test_inside_the_window_a_run_waits_unless_ordered_or_due(world):
    world.ask("p1")
    world.run()
    world.ask("p2")
    held = world.run().held
    assert held.reasons[0].code == "window"
    assert {row.state for row in world.requests(states=["fenced"])} == {"fenced"}
    outcome = world.run(ordered="the authority asked")
    assert outcome.held is None
    assert outcome.batch.forced == "ordered: the authority asked"
    world.ask("p3")
    assert world.run().held is not None
    world.project.clock.advance(86_400)
    assert world.run().held is None
    assert len(world.work.retrains) == 3


def test_a_refused_retrain_is_told_once_and_at_the_deadline_the_old_model_stops(world):
    world.work.refusal = Refusal((Reason("cap-exceeded", "the budget is spent"),))
    world.ask("p1")
    said = []
    for _ in range(3):
        held = world.run(say=said.append).held
        assert held.reasons[0].code == "cap-exceeded"
        assert "`mlops release p`" in held.reasons[-1].text
        world.project.clock.advance(3_600)
    assert not [line for line in said if "held up" in line], "the outbox tells it, to the log too"
    assert world.work.environments == {"production": 1}
    with world.project.ledger.read() as connection:
        told = [event for event in load_events(connection) if event.kind == "notice.added"]
    assert [event.body["action"] for event in told] == ["held-up"]
    world.project.clock.advance(31 * DAY_US / 1e6)
    world.run()
    assert world.work.environments == {"production": 0}
    world.work.refusal = None
    outcome = world.run()
    assert outcome.held is None, "the request is still answered"
    predicate = parse_certificate(world.certificates()[0].envelope).predicate
    assert [move["kind"] for move in predicate["rollout"]] == ["stopped"]
    assert not predicate["requests"][0]["is_in_time"]


def test_a_store_that_is_down_holds_the_certificate_up_until_it_is_back(world):
    world.work.is_store_down = True
    world.ask("p1")
    held = world.run().held
    assert held.reasons[0].code == "not-purged"
    assert world.certificates() == ()
    world.work.is_store_down = False
    world.run()
    # what could not be purged as a whole is answered for shard by shard now
    assert all(it["is_gone"] for it in parse_certificate(world.certificates()[0].envelope).predicate["purge"])


def test_a_legal_hold_keeps_the_fence_and_waits(world):
    (answer,) = world.ask("p1")
    held = move_request(world.project, answer.receipt_id, how="hold", reason="tax law")
    assert held.state == "legal-hold"
    assert world.run().held.reasons[0].code == "nothing-open"
    pinned = load_dataset_version(world.project.places, DATASET)
    assert find_withdrawn(world.project.places, pinned) == {world.hash("p1")}
    move_request(world.project, answer.receipt_id, how="release", reason="")
    assert world.run().held is None


def test_who_is_not_proven_is_not_fenced_until_verified_and_may_be_refused(world):
    first, second = world.ask("p1", "p2", is_proven=False)
    pinned = load_dataset_version(world.project.places, DATASET)
    assert find_withdrawn(world.project.places, pinned) == frozenset()
    move_request(world.project, first.request_id, how="verify", reason="")
    move_request(world.project, second.request_id, how="refuse", reason="no proof")
    assert find_withdrawn(world.project.places, pinned) == {world.hash("p1")}
    assert isinstance(move_request(world.project, first.request_id, how="refuse", reason="late"), Refusal)
    assert world.run().requests == 1


def test_two_runners_at_once_one_works(world):
    from mlops.training.sweep_book import this_driver

    world.ask("p1")
    refused = []

    def hook(name):
        if name == "before-rewriting":
            refused.append(run_other())

    def run_other():
        from mlops.erasure.running import run_erasure

        return run_erasure(world.project, DATASET, world.work, runner="somewhere:9:9")

    from mlops.erasure.running import run_erasure

    outcome = run_erasure(world.project, DATASET, world.work, runner=this_driver(), hook=hook)
    assert [answer.reasons[0].code for answer in refused] == ["runner-at-work"]
    assert outcome.held is None


def test_a_thousand_people_make_one_retrain(world):
    world.ask(*(f"p{number}" for number in range(6)), *(f"stranger-{number}" for number in range(994)))
    outcome = world.run()
    assert outcome.requests == 1_000
    assert len(world.work.retrains) == 1
