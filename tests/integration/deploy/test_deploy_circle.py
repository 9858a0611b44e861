"""Promote, reconcile, fail, go back, roll back: with real HAProxy and git, instances as plain processes."""

import http.client
import json
import shutil
import threading
import time

import pytest

from mlops.deploy import sql_deployments, traffic_switch
from mlops.deploy.first_move import move_traffic
from mlops.deploy.promoting import promote
from mlops.deploy.state_keeper import load_desired_state
from mlops.deploy.withdrawal import roll_back
from mlops.errors import Refusal

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed"),
]


class Load:
    """Two clients that ask all the time; every answer is kept."""

    def __init__(self, port):
        self.port = port
        self.answers = []
        self.failures = []
        self._is_ending = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_ending.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._is_ending.is_set():
            try:
                connection.request("POST", "/v2/models/income/infer", body=b'{"rows": [0.5]}')
                response = connection.getresponse()
                content = response.read()
                if response.status != 200:
                    raise RuntimeError(f"{response.status} {content!r}")
                self.answers.append((time.time_ns(), int(json.loads(content)["model_version"])))
            except Exception as error:
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def wait(self, seconds=0.2):
        time.sleep(seconds)


def serve(world, number):
    result = promote(world.site, world.rules, f"income@{number}")
    assert not isinstance(result, Refusal), result.render_text()
    outcome = world.reconciler().run_once()
    assert not isinstance(outcome, Refusal), outcome.render_text()
    return outcome


def test_a_second_version_takes_over_without_a_failed_request(world):
    world.release(1)
    world.release(2)
    assert not serve(world, 1).reasons
    with Load(world.rules.traffic.ports["income"]) as load:
        load.wait()
        assert not serve(world, 2).reasons
        load.wait()
    assert load.failures == []
    assert load.answers[0][1] == 1
    assert load.answers[-1][1] == 2
    assert len(world.runtime.list_instances()) == 2, "the last known good stays warm"


def test_a_bad_version_never_gets_traffic_and_the_desired_state_goes_back(world):
    world.release(1)
    bad = world.release(2, wrong_by=0.5)
    serve(world, 1)
    with Load(world.rules.traffic.ports["income"]) as load:
        outcome = serve(world, 2)
        load.wait()
    assert "golden request 0" in outcome.products[0].failure
    assert load.failures == []
    assert {number for _, number in load.answers} == {1}
    state = load_desired_state(world.site, "production").find_product("income")
    assert [version.number for version in state.versions] == [1]
    with world.site.ledger.read() as connection:
        assert "differs by 0.5" in sql_deployments.load_barred(connection, "production")[bad].why
    refused = promote(world.site, world.rules, "income@2")
    assert [reason.code for reason in refused.reasons] == ["barred"]


def test_a_rollback_moves_traffic_first_and_then_git(world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    folder = world.site.product_folder("production", "income")
    with Load(world.rules.traffic.ports["income"]) as load:
        load.wait()
        started = time.time_ns()
        way = traffic_switch.switch_back(folder)
        load.wait()
        target = roll_back(world.site, world.rules, "income", leave=way["from_image"], why="test")
        assert not isinstance(target, Refusal), target.render_text()
        assert not world.reconciler().run_once().reasons
        load.wait()
    assert load.failures == []
    last_bad = max(at for at, number in load.answers if number == 2)
    assert last_bad - started < 1e9
    assert load.answers[-1][1] == 1
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1


def test_a_rollback_beside_a_watching_reconciler_stays_back(world, monkeypatch):
    """The command's first move, as typed, while a reconciler still works on the former state."""
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    monkeypatch.chdir(world.root / "deploy")
    ending = threading.Event()
    seen = []
    watcher = threading.Thread(
        target=lambda: seen.extend(world.reconciler(patience_seconds=5.0).watch(is_ending=ending.is_set))
    )
    watcher.start()
    try:
        with Load(world.rules.traffic.ports["income"]) as load:
            load.wait()
            moved = move_traffic(["rollback", "production", "--reason", "x"])
            image, _, switched = moved.split(",")
            load.wait(0.5)  # the watcher has the time to move it back, if it would
            target = roll_back(world.site, world.rules, "income", leave=image, why="by hand")
            load.wait(0.5)
    finally:
        ending.set()
        watcher.join()
    assert not isinstance(target, Refusal), target.render_text()
    assert target.versions[0].number == 1
    assert load.failures == []
    late = [number for at, number in load.answers if at > int(switched) + 300_000_000]
    assert late
    assert set(late) == {1}
    assert load_desired_state(world.site, "production").find_product("income").versions[0].number == 1
    assert [(row.cause, row.why) for row in barred(world)] == [("rollback", "by hand")]


def barred(world):
    with world.site.ledger.read() as connection:
        return list(sql_deployments.load_barred(connection, "production").values())


CALLS = {
    "as simple as can be": (["rollback", "production"], True),
    "with a reason and JSON": (["rollback", "production", "--reason", "x y", "--json"], True),
    "with the product": (["rollback", "production", "--product", "income"], True),
    "another command": (["promote", "production"], False),
    "a dry run": (["rollback", "production", "--dry-run"], False),
    "to a version": (["rollback", "production", "--to", "1"], False),
    "help": (["rollback", "--help"], False),
    "an unknown environment": (["rollback", "staging"], False),
    "an unknown product": (["rollback", "production", "--product", "digits"], False),
    "a path as environment": (["rollback", "../production"], False),
    "a path as product": (["rollback", "production", "--product", "../production/income"], False),
}


def test_the_first_move_acts_on_the_simple_call_only(world, monkeypatch):
    world.release(1)
    world.release(2)
    serve(world, 1)
    serve(world, 2)
    monkeypatch.chdir(world.root)
    table = world.reconciler().table_of("income")
    before = {slot: traffic.weight for slot, traffic in table.proxy.load_traffic().items()}
    for case, (arguments, acts) in CALLS.items():
        assert (move_traffic(arguments) is not None) == acts, case
        assert (traffic_switch.read_hold(table.folder) is not None) == acts, case
        traffic_switch.release_hold(table.folder)
        traffic_switch.set_weights(table.folder, before)


def test_two_versions_serve_side_by_side_with_their_shares(world):
    world.release(1)
    world.release(2)
    serve(world, 1)
    result = promote(world.site, world.rules, "income@2", share=25)
    assert not isinstance(result, Refusal)
    assert not world.reconciler().run_once().reasons
    with Load(world.rules.traffic.ports["income"]) as load:
        load.wait(1)
    share = sum(number == 2 for _, number in load.answers) / len(load.answers)
    assert 0.15 < share < 0.35
    assert load.failures == []
