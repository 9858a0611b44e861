"""`kill -9` at random moments inside the steps of an erasure: the next run goes on until everybody is answered once.

The runner is a process of its own over real data, DVC store, ledger and git; its models are notes in a file.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from erasure_fakes import DATASET, make_erasure_world

from mlops.datasets.forgetting import find_holdings
from mlops.datasets.returned import find_returned
from mlops.datasets.verifying import find_damage
from mlops.datasets.version import load_dataset_version, read_split
from mlops.erasure.certificate import parse_certificate
from mlops.erasure.clean_version import find_uncommitted

KILLS = 3 * int(os.environ.get("MLOPS_TEST_SCALE", "1"))
"""Of each batch, at most."""
TESTS = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)
PEOPLE = ("p1", "p2")
RUNNER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from erasure_fakes import FakeWork, DATASET
from mlops.erasure.running import run_erasure
from mlops.files import write_atomically
from mlops.project.opening import open_project

notes = Path(sys.argv[3])
class KeptWork(FakeWork):
    def keep(self):
        write_atomically(notes, json.dumps([self.environments, self.models, self.retrains]))
    def retrain(self, released, withdrawn):
        made = super().retrain(released, withdrawn)
        self.keep()
        return made
    def roll_out(self, numbers, people, *, is_due):
        moves = super().roll_out(numbers, people, is_due=is_due)
        self.keep()
        return moves

project = open_project(Path(sys.argv[2]))
environments, models, retrains = json.loads(notes.read_text())
work = KeptWork(project, environments, {int(key): value for key, value in models.items()}, retrains=retrains)
outcome = run_erasure(project, DATASET, work, ordered="test", say=lambda line: print(line, flush=True))
held = getattr(outcome, "held", outcome)
print(held and held.reasons[0].text)
"""


def rows_of_others(world, gone):
    version = load_dataset_version(world.project.places, DATASET)
    rows = pa.concat_tables([read_split(version, split) for split in version.manifest.splits]).to_pylist()
    return sorted(str(row) for row in rows if row["subject"] not in gone)


def run_killed(command, seconds):
    """A run, killed `seconds` after it took the batch unless it ends before: was it, what it said, how long it ran."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.readline()  # it holds the batch now: a kill while Python starts teaches nothing
    began = time.monotonic()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    is_killed = process.wait() == -signal.SIGKILL
    took = time.monotonic() - began
    with process.stdout:
        return is_killed, said + process.stdout.read(), took


def test_a_runner_killed_at_random_moments_ends_its_batch(tmp_path):
    seed = int(os.environ.get("MLOPS_TEST_SEED", random.randrange(1_000_000)))
    print(f"MLOPS_TEST_SEED={seed}")
    chance, kills, whole_run = random.Random(seed), 0, 0.0
    world = make_erasure_world(tmp_path / "project", persons=40)
    places, notes = world.project.places, tmp_path / "notes.json"
    command = [sys.executable, "-c", RUNNER, str(TESTS), str(places.root), str(notes)]
    gone = {world.hash(person) for person in PEOPLE}
    others = rows_of_others(world, gone)
    notes.write_text(json.dumps([world.work.environments, world.work.models, []]))
    for number, person in enumerate(PEOPLE):
        world.ask(person)
        for turn in range(KILLS if number else 0):  # early first: a first run is slower than those after it
            kills += run_killed(command, chance.uniform(0, whole_run * (turn + 1) / KILLS))[0]
        _, said, took = run_killed(command, 300)
        assert said.endswith(("None\n", "nobody waits to be forgotten in people\n")), said
        whole_run = whole_run or took
    assert kills, "no run was killed"
    environments, models, _ = json.loads(notes.read_text())
    pinned = load_dataset_version(places, DATASET)
    assert rows_of_others(world, set()) == others, "the people are gone, and nobody else's row changed"
    assert [find_holdings(places, DATASET, subject) for subject in gone] == [()] * len(gone)
    assert (find_returned(places, DATASET), find_uncommitted(places, DATASET)) == ((), None)
    assert find_damage(places, DATASET, dvc_digest=pinned.dvc_digest) == ()
    assert models[str(environments["production"])] == pinned.dvc_digest
    answered = [parse_certificate(row.envelope).predicate["requests"] for row in world.certificates()]
    assert [len(requests) for requests in answered] == [1] * len(PEOPLE)
    assert {row.state for row in world.requests()} == {"certified"}
    world.project.ledger.close()
