"""Forgetting a person retrains only members that read them, to the same bits as training all from scratch."""

import runpy
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlops.clock import FakeClock
from mlops.datasets.reader import ShardReader
from mlops.ids import CountingIds
from mlops.ledger.connection import open_ledger
from mlops.places import Places
from mlops.registry.mirror import DatasetReference, MemoryMirror
from mlops.training.attempt import Answer, Ended, Ready, Reported
from mlops.training.ensemble import EnsembleRequest, plan_retrain, train_ensemble
from mlops.training.sweep import Ensemble, SweepGround, SweepRequest
from mlops.training.worker import run_attempt

torch.set_num_threads(1)
UNIT = Path(__file__).parents[2] / "unit"
_training = runpy.run_path(str(UNIT / "training" / "conftest.py"), run_name="training_conftest")
_datasets = runpy.run_path(str(UNIT / "datasets" / "conftest.py"), run_name="datasets_conftest")
pytestmark = pytest.mark.timeout(600)


class SoloCrew:
    """Groups that are this process: an attempt is run when it begins, then told report by report."""

    runs_ahead = False

    def __init__(self, reader):
        self.reader, self.events, self.tasks = reader, [], []

    def start_group(self, name, **_):
        self.events.append(Ready(name, "cpu", start_us=1))

    def begin(self, name, task):
        reported = []
        result = run_attempt(task, source=self.reader, channel=Told(reported), rank=0, world_size=1, device="cpu")
        self.tasks.append((task, [epoch for epoch, _ in reported]))
        self.events += [Reported(name, task.trial, task.attempt, epoch, metrics) for epoch, metrics in reported]
        self.events.append(
            Ended(
                name, task.trial, task.attempt, result.outcome, result.usage, result.weights_file,
                result.weights_sha256, result.reason,
            )
        )  # fmt: skip

    def next_events(self, *, timeout_seconds):
        events, self.events = self.events, []
        time.sleep(0 if events else 0.001)
        return events

    def likeness(self, shape):
        return "solo"

    def adopt_group(self, name, *, shape, until_us):
        return False

    def keep_group(self, name, *, until_us):
        return False

    def end_left_over(self, names): ...
    def ask_yield(self, name): ...
    def extend(self, name, *, until_us): ...
    def answer(self, name, answer): ...
    def stop_group(self, name): ...
    def close(self): ...


class Told:
    def __init__(self, reported):
        self.reported = reported

    def step(self, *, epoch, done):
        return False

    def report(self, *, epoch, metrics):
        self.reported.append((epoch, dict(metrics)))
        return Answer.CONTINUE

    def conclude(self, *, epoch, metrics):
        self.report(epoch=epoch, metrics=metrics)


class Ground:
    """Versions of one dataset, and ensembles trained on them in folders of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = _datasets["make_rows"](240)
        self.trainer = folder / "tiny.py"
        self.trainer.write_text(_training["TRAINER"])

    def version(self, rows):
        where = self.folder / f"project-{len(rows)}-{hash(str(rows))}"
        recipe = {
            **_datasets["RECIPE"],
            "groups": 16,
            "splits": {"train": [0, 12], "validation": [12, 14], "test": [14, 16]},
        }
        people = _datasets["People"](places=Places(where), recipe=recipe, rows=rows).write()
        return _datasets["store_build"](people.build(where / "build"), where / "objects")

    def request(self, version, checkpoints, **isolation):
        base = _training["_as_written"](
            _training["parse_spec"](_training["SPEC"], _training["SweepSpec"], source="tiny.yaml").to_json()
        )
        spec = _training["SweepSpec"].model_validate({**base, "isolation": isolation})
        sweep = SweepRequest(
            spec=spec,
            trainer_file=self.trainer,
            inputs={"trainer": "sha256:" + "a" * 64, "manifest": version.digest},
            reserved=_training["RESERVED"],
            dataset=DatasetReference("people", version.digest),
            checkpoints=checkpoints,
        )
        return EnsembleRequest(sweep, version=version, params={"learning_rate": 0.05})

    def train(self, request, name):
        clock = FakeClock()
        ledger = open_ledger(f"sqlite:///{self.folder / name}.sqlite", clock)
        crew = SoloCrew(ShardReader(request.version, self.folder / "cache"))
        leases = _training["FakeLeases"](clock)
        try:
            ground = SweepGround(
                ledger=ledger, clock=clock, ids=CountingIds(), leases=leases, mirror=MemoryMirror(),
                open_crew=lambda: crew, say=lambda line: None,
            )  # fmt: skip
            ensemble = train_ensemble(request, ground)
        finally:
            ledger.close()
        assert isinstance(ensemble, Ensemble), ensemble
        return ensemble, crew.tasks


@settings(
    max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(person=st.integers(0, 10**6), members=st.integers(2, 4), slices=st.integers(1, 3))
def test_a_retrain_after_forgetting_equals_training_from_scratch(tmp_path, person, members, slices):
    folder = tmp_path / f"{person}-{members}-{slices}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    ground = Ground(folder)
    before = ground.version(ground.rows)
    request = ground.request(before, folder / "kept", groups=members, slices=slices)
    first, tasks = ground.train(request, "first")
    assert (first.members, len(first.trained), len(tasks)) == (members, members, members)

    gone = ground.rows[person % len(ground.rows)]["person"]
    after = ground.version([row for row in ground.rows if row["person"] != gone])
    changed = {shard.group for shard in before.manifest.shards} - {
        shard.group for shard in before.manifest.shards if shard.sha256 in {s.sha256 for s in after.manifest.shards}
    }
    again = ground.request(after, folder / "kept", groups=members, slices=slices)
    planned = plan_retrain(again)
    retrained, tasks = ground.train(again, "again")
    scratch, _ = ground.train(replace(again, sweep=replace(again.sweep, checkpoints=folder / "scratch")), "scratch")
    assert retrained.weights_sha256 == scratch.weights_sha256  # bit by bit

    hit = {
        member.number: min(stage for stage, part in enumerate(member.slices) if changed & set(part.groups))
        for member in request.members()
        if any(changed & set(part.groups) for part in member.slices)
    }
    assert planned == hit  # only the members that read the person, from the last slice before
    epochs = again.isolation.stage_epochs(again.sweep.spec.epochs)
    assert {task.params["member"]: done[0] for task, done in tasks} == {m: stage * epochs for m, stage in hit.items()}
    assert len(hit) <= 1
