"""A project with real shards and a real local Ray, shared by the whole session."""

import runpy
import shutil
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.registry.mirror import MemoryMirror
from mlops.training.launch import launch_sweep, make_request, open_ray_crew
from mlops.training.ray_cluster import connected, stop_local
from mlops.training.spec import SweepSpec

UNIT = Path(__file__).parents[2] / "unit"
_training = runpy.run_path(str(UNIT / "training" / "conftest.py"), run_name="training_conftest")
_datasets = runpy.run_path(str(UNIT / "datasets" / "conftest.py"), run_name="datasets_conftest")


class RayProject:
    """The product `tiny` over the dataset `people` (300 rows), with fake money and an in-memory mirror."""

    def __init__(self, folder: Path) -> None:
        self.places = Places(folder / "project")
        recipe = _datasets["yaml"].safe_load(_datasets["yaml"].safe_dump(_datasets["RECIPE"]))
        people = _datasets["People"](places=self.places, recipe=recipe, rows=_datasets["make_rows"](300)).write()
        shutil.rmtree(folder / "build", ignore_errors=True)  # of an earlier process
        self.version = _datasets["store_build"](people.build(folder / "build"), folder / "objects")
        self.places.trainer_file("tiny").parent.mkdir(parents=True, exist_ok=True)
        self.places.trainer_file("tiny").write_text(_training["TRAINER"])
        self.clock = SystemClock()
        self.ids = TimeIds(self.clock)
        self.ledger = open_ledger(sqlite_url(self.places.ledger_file), self.clock)
        self.leases = _training["FakeLeases"](self.clock)
        self.mirror = MemoryMirror()
        self.lines: list[str] = []

    def spec(self, **changes) -> SweepSpec:
        base = _training["_as_written"](
            _training["parse_spec"](_training["SPEC"], SweepSpec, source="tiny.yaml").to_json()
        )
        return SweepSpec.model_validate({**base, "workers": 2, "accelerators": "0.5xcpu", "idle": "0s", **changes})

    def calm_spec(self, **changes):
        """Of the undisturbed sweep and of those that must come to its results; `lag` is that of two groups."""
        return self.spec(**{"trials": 4, "epochs": 3, "seed": 11, "lag": 3, **changes})

    def request(self, spec):
        return make_request(self.places, spec, version=self.version, tags={}, spender="someone")

    def launch(self, spec, **changes):
        values = {
            "version": self.version,
            "ledger": self.ledger,
            "clock": self.clock,
            "ids": self.ids,
            "leases": self.leases,
            "mirror": self.mirror,
            "say": self.lines.append,
        }
        return launch_sweep(self.places, self.request(spec), **{**values, **changes})

    def crew(self, spec):
        return open_ray_crew(self.places, spec, version=self.version, say=self.lines.append)


@pytest.fixture(scope="session")
def ray_home(tmp_path_factory):
    """One local Ray for the session, ended at its end."""
    project = RayProject(tmp_path_factory.mktemp("ray"))
    with connected(project.places, cpus=2):
        pass
    yield project
    project.ledger.close()
    stop_local(project.places)


@pytest.fixture(scope="session")
def calm(ray_home):
    """The outcome of an undisturbed sweep: four trials on two groups of two workers."""
    return ray_home.launch(ray_home.calm_spec())


@pytest.fixture
def make_project():
    """Makes projects with a Ray of their own; with `like`, one that uses another's places and so its Ray."""
    made = []

    def make(folder, *, like=None):
        project = RayProject(folder)
        if like is not None:
            project.places = like.places
        made.append(project)
        return project

    yield make
    for project in made:
        project.ledger.close()
        stop_local(project.places)


@pytest.fixture
def ray_project(ray_home):
    """The shared project; trainer restored after each test."""
    yield ray_home
    ray_home.places.trainer_file("tiny").write_text(_training["TRAINER"])
