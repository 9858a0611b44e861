"""A detached driver: a session of its own with a log here, or a job with working directory and lock on a cluster."""

import os

import psutil
import pytest

from mlops.errors import EnvironmentFault
from mlops.places import Places
from mlops.provenance.digest import digest_file
from mlops.training.detached import EXPECTED_LOCK, require_expected_lock, ship_driver, spawn_driver


class MemoryJobs:
    def __init__(self):
        self.jobs = []

    def submit(self, entrypoint, *, job_id, runtime_env, tags):
        self.jobs.append((entrypoint, job_id, runtime_env, tags))
        return job_id


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path)
    places.lock_file.write_text("torch==2.13.0\n")
    return places


def test_a_driver_on_this_machine_has_a_session_of_its_own_and_a_log(places):
    pid, log = spawn_driver(places, ["sweep", "--help"], sweep_id="sweep-1")
    process = psutil.Process(pid)
    assert os.getsid(pid) == pid
    os.waitpid(pid, 0)
    assert "Launch, list, show, stop and resume sweeps." in log.read_text()
    assert not process.is_running()


def test_a_driver_on_a_cluster_takes_the_working_directory_and_the_lock_with_it(places):
    jobs = MemoryJobs()
    ledger = "postgresql://somewhere/ledger"
    assert ship_driver(places, jobs, ["sweep", "launch", "tiny"], sweep_id="sweep-1", ledger_url=ledger) == "sweep-1"
    ((entrypoint, _, runtime_env, tags),) = jobs.jobs
    assert entrypoint == "python -m mlops.cli sweep launch tiny"
    assert runtime_env["working_dir"] == str(places.root)
    assert ".mlops" in runtime_env["excludes"]  # keys stay here
    assert tags == {"mlops.lock": digest_file(places.lock_file)}
    assert runtime_env["env_vars"] == {EXPECTED_LOCK: digest_file(places.lock_file), "MLOPS_LEDGER": ledger}


def test_a_ledger_that_is_a_file_here_is_out_of_a_clusters_reach(places):
    with pytest.raises(EnvironmentFault, match="cannot reach a ledger that is a file here"):
        ship_driver(places, MemoryJobs(), [], sweep_id="sweep-1", ledger_url="sqlite:///x")


def test_a_driver_with_another_lock_refuses_to_start(places, monkeypatch):
    monkeypatch.setenv(EXPECTED_LOCK, digest_file(places.lock_file))
    require_expected_lock(places)
    places.lock_file.write_text("torch==2.12.0\n")
    with pytest.raises(EnvironmentFault, match="not the lock that this sweep was launched with"):
        require_expected_lock(places)
