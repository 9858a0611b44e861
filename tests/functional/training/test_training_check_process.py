"""The trainer check in its own process: what hangs, exits or fails its own tests is said, and nothing lives on."""

import runpy
from pathlib import Path

import pytest

from mlops.clock import SystemClock
from mlops.ids import TimeIds
from mlops.ledger.connection import open_ledger, sqlite_url
from mlops.places import Places
from mlops.provenance.confinement import landlock_version
from mlops.provenance.steps import StepBook, StepRun, Workbench
from mlops.training.check_process import check_confined
from mlops.training.spec import load_sweep_spec
from mlops.training.step_check import check_step

UNIT = Path(__file__).parents[2] / "unit"
_training = runpy.run_path(str(UNIT / "training" / "conftest.py"), run_name="training_conftest")
_datasets = runpy.run_path(str(UNIT / "datasets" / "conftest.py"), run_name="datasets_conftest")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def product(tmp_path):
    """The product `tiny` over 300 rows: places, spec, version."""
    places = Places(tmp_path / "project")
    people = _datasets["People"](
        places=places, recipe=dict(_datasets["RECIPE"]), rows=_datasets["make_rows"](300)
    ).write()
    version = _datasets["store_build"](people.build(tmp_path / "build"), tmp_path / "objects")
    places.trainer_file("tiny").parent.mkdir(parents=True)
    places.trainer_file("tiny").write_text(_training["TRAINER"])
    places.sweep_file("tiny").write_text(_training["SPEC"])
    return places, load_sweep_spec(places.sweep_file("tiny")), version


@pytest.mark.parametrize(
    ("first_line", "limit", "line", "text"),
    [
        ("import time; time.sleep(3600)", 8, "ends", "does not end within 8 s"),
        ("import os; os._exit(3)", 120, "runs", "exit code 3"),
    ],
)
def test_a_trainer_that_hangs_or_exits_is_said(product, first_line, limit, line, text):
    places, spec, version = product
    trainer = places.trainer_file("tiny")
    trainer.write_text(trainer.read_text() + f"\n{first_line}\n")
    found = check_confined(places, spec, version=version, say=lambda line: None, limit_seconds=limit)
    assert [violation.line for violation in found] == [line]
    assert text in found[0].text


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
def test_a_trainer_that_writes_what_is_not_its_own_is_said_and_what_it_may_write_is_allowed(product):
    """Its own folder and temporary files in the first run; the file of its own sweep in the second."""
    places, spec, version = product
    trainer, start = places.trainer_file("tiny"), "    net = model(params)"
    own = "    (worker.folder / 'seen').write_text('x')\n    import tempfile\n    tempfile.TemporaryFile().close()\n"
    sound = trainer.read_text().replace(start, f"{own}{start}", 1)
    trainer.write_text(sound)
    assert check_confined(places, spec, version=version, say=lambda line: None) == ()
    before = places.sweep_file("tiny").read_text()
    foreign = f"    open({str(places.sweep_file('tiny'))!r}, 'w')\n"
    trainer.write_text(sound.replace(start, f"{foreign}{start}", 1))
    (found,) = check_confined(places, spec, version=version, say=lambda line: None)
    assert found.line == "writes"
    for said in ("tiny.py:", "tiny.yaml", "writes only below `worker.folder` and to temporary files"):
        assert said in found.text
    assert places.sweep_file("tiny").read_text() == before


def test_the_result_is_kept_by_the_code_and_the_authors_own_tests_count(product, tmp_path):
    places, spec, version = product
    clock = SystemClock()
    ledger = open_ledger(sqlite_url(places.ledger_file), clock)
    lines = []
    ids = TimeIds(clock)
    bench = Workbench(places, ledger, clock, ids, StepBook(ledger, clock=clock, ids=ids, signer=None), lines.append)
    own = places.root / "tests" / "trainers" / "tiny" / "test_tiny.py"
    own.parent.mkdir(parents=True)
    own.write_text("def test_it():\n    assert 1 + 1 == 3, 'no'\n")
    refused = check_step(bench, spec, version=version)
    assert [reason.code for reason in refused.reasons] == ["tests"]
    assert "test_tiny.py" in refused.reasons[0].text
    own.write_text("def test_it():\n    assert 1 + 1 == 2\n")
    checked = check_step(bench, spec, version=version)
    assert isinstance(checked, StepRun)
    assert "tests: those in tiny/ pass" in lines
    again = check_step(bench, spec.model_copy(update={"trials": 77}), version=version)
    assert again.is_reused  # other parts of the spec change nothing
    served = check_step(bench, spec.model_copy(update={"export": "torch"}), version=version)
    assert isinstance(served, StepRun)
    assert not served.is_reused  # another thing would serve
    ledger.close()
