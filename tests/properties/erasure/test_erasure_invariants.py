"""Erasure under any order of requests, runs, crashes, refusals and lost stores: the laws of issue and DESIGN hold.

Data, ledger, git and tombstones are real; models are notes in memory (erasure_fakes.FakeWork).
"""

import math
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
from erasure_fakes import DATASET, Killed, make_erasure_world, restart
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlops.clock import DAY_US
from mlops.datasets.fence import find_withdrawn
from mlops.datasets.forgetting import find_holdings
from mlops.datasets.importing import import_dataset
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import object_path
from mlops.datasets.returned import find_returned
from mlops.datasets.version import load_dataset_version, read_split
from mlops.erasure import sql_erasure
from mlops.erasure.batches import STEPS
from mlops.erasure.certificate import parse_certificate
from mlops.errors import Reason, Refusal

SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
PERSONS = 10
WINDOW_DAYS = 1
people = st.sampled_from([f"p{number}" for number in range(PERSONS)] + ["stranger"])
points = st.sampled_from([*(f"before-{state}" for state in STEPS), "before-retrain-p", "before-deadline"])


def rows_by_person(places, version):
    tables = [read_split(version, split) for split in version.manifest.splits]
    found = {}
    for row in pa.concat_tables(tables).to_pylist():
        found.setdefault(row.pop("subject"), []).append(sorted(row.items()))
    return {subject: sorted(rows) for subject, rows in found.items()}


class Erasure(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="erasure-"))
        self.world = make_erasure_world(self.folder / "project", persons=PERSONS, rules={"window": f"{WINDOW_DAYS}d"})
        self.began_us = self.world.project.clock.now_us()
        self.ran_us = 0
        self.everybody = rows_by_person(self.world.project.places, self.pinned())
        self.objects = {}
        self.keep_objects()

    def teardown(self):
        if hasattr(self, "folder"):
            self.world.project.ledger.close()
            shutil.rmtree(self.folder)

    def pinned(self):
        return load_dataset_version(self.world.project.places, DATASET)

    def keep_objects(self):
        """What a stale clone has: every shard that was ever pinned."""
        for shard in self.pinned().manifest.shards:
            for url in load_locations(self.world.project.places).object_urls:
                path = Path(object_path(url, shard.md5))
                if path.is_file():
                    self.objects[shard.md5] = path.read_bytes()

    @rule(persons=st.lists(people, min_size=1, max_size=3))
    def ask(self, persons):
        self.world.ask(*persons)

    @rule()
    def run(self):
        self.world.run()
        self.ran_us = self.world.project.clock.now_us()
        self.keep_objects()

    @rule(point=points)
    def run_and_die(self, point):
        def hook(name):
            if name == point:
                raise Killed

        try:
            self.world.run(hook=hook)
        except Killed:
            self.world = restart(self.world)

    @rule(is_refused=st.booleans(), is_down=st.booleans())
    def change_weather(self, is_refused, is_down):
        reason = Reason("cap-exceeded", "the budget is spent")
        self.world.work.refusal = Refusal((reason,)) if is_refused else None
        self.world.work.is_store_down = is_down

    @rule(hours=st.integers(1, 30))
    def wait(self, hours):
        self.world.project.clock.advance(hours * 3_600)

    @rule()
    def wait_to_the_deadline_with_hourly_runs(self):
        """Who runs it as `mlops schedule` says is in time; the last hour is what counts."""
        self.world.project.clock.advance(32 * 86_400 - 7_200)
        self.run()

    @rule()
    def release_what_is_pinned(self):
        """Somebody trains; refused while withdrawn people are in the data."""
        places = self.world.project.places
        if not find_withdrawn(places, self.pinned()):
            self.world.work.release()

    @rule()
    def stale_clone_pushes(self):
        """Every old shard comes back to the remote; the next run sweeps it."""
        url = load_locations(self.world.project.places).object_urls[-1]
        for md5, content in self.objects.items():
            path = Path(object_path(url, md5))
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)
        self.run()

    @invariant()
    def after_certified_nothing_is_left(self):
        places = self.world.project.places
        open_ones = {row.subject for row in self.world.requests() if row.state != "certified"}
        for row in self.world.requests(states=["certified"]):
            if row.subject not in open_ones:
                assert find_holdings(places, DATASET, bytes.fromhex(row.subject)) == ()
        assert find_returned(places, DATASET) == ()

    @invariant()
    def nobody_past_the_deadline_is_behind_what_serves(self):
        """Answered or still open, in the batch or behind a stuck one; an open one as of the last run to its end."""
        now_us = self.world.project.clock.now_us()
        due = {
            bytes.fromhex(row.subject)
            for row in self.world.requests()
            if row.deadline_us <= (now_us if row.state == "certified" else self.ran_us)
        }
        for number in self.world.work.environments.values():
            assert number == 0 or not self.world.work.people_behind(number, frozenset(due))

    @invariant()
    def no_model_is_promoted_with_a_person_of_its_batch(self):
        for number, subjects in self.world.work.promoted:
            assert not self.world.work.people_behind(number, subjects)

    @invariant()
    def retrains_are_bounded_by_the_window(self):
        """But for those that a near deadline forced."""
        with self.world.project.ledger.read() as connection:
            rows = sql_erasure.list_retrains(connection, dataset=DATASET)
        ended = sorted(row.ended_us for row in rows if row.ended_us is not None and not row.forced)
        for first in range(len(ended)):
            for last in range(first, len(ended)):
                days = (ended[last] - ended[first]) / DAY_US
                assert last - first + 1 <= math.ceil(days / WINDOW_DAYS) + 1

    @invariant()
    def everybody_else_keeps_their_rows(self):
        gone = {bytes.fromhex(row.subject) for row in self.world.requests() if row.batch_id is not None}
        now = rows_by_person(self.world.project.places, self.pinned())
        for subject, rows in self.everybody.items():
            assert now.get(subject, rows if subject in gone else None) == rows

    @invariant()
    def every_certificate_counts_its_requests_once(self):
        batches = [parse_certificate(row.envelope).predicate for row in self.world.certificates()]
        assert sum(len(it["requests"]) for it in batches) == len(self.world.requests(states=["certified"]))


Erasure.TestCase.settings = settings(
    max_examples=8 * SCALE,
    stateful_step_count=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a shorter example costs minutes of DVC and git
)
TestErasure = Erasure.TestCase


def test_the_order_of_requests_does_not_change_the_version(tmp_path):
    digests = set()
    for number, order in enumerate((["p1", "p2", "p3"], ["p3", "p1", "p2"], ["p2", "p3", "p1"])):
        world = make_erasure_world(tmp_path / str(number), rules={"window": "1s"})
        for person in order:
            world.ask(person)
            world.project.clock.advance(2)
            if number:
                assert world.run().held is None  # one batch each; the first order is one batch of three
        assert world.run().held is None or number
        digests.add(load_dataset_version(world.project.places, DATASET).digest)
        world.project.ledger.close()
    imported = make_erasure_world(tmp_path / "imported")
    imported.ask("p1", "p2", "p3")
    import_dataset(imported.project.places, DATASET, accept_changes=True)
    digests.add(load_dataset_version(imported.project.places, DATASET).digest)
    assert len(digests) == 1, "and an import without these people makes the same version"
