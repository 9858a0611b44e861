"""A sweep whose workers, driver, raylet and MLflow server are killed at random ends as an undisturbed one does."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from mlops.budgets.leases import LeaseBook
from mlops.budgets.opening import open_lease_queue
from mlops.budgets.replay import find_differences
from mlops.ledger.sql_events import load_events
from mlops.registry.mlflow_door import open_client
from mlops.training import sql_trials
from mlops.training.ray_cluster import connected, find_local, stop_local

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]  # minutes, on a quiet machine too
ROOT = Path(__file__).parents[3]
SCALE = int(os.environ.get("MLOPS_TEST_SCALE", "1"))
TRIALS = 20 * min(SCALE, 5)
KILLS = ["worker", "driver", "mlflow", "worker", "raylet"] * min(SCALE, 5)
SPEC = {"trials": TRIALS, "epochs": 3, "seed": 5, "max_failures": 50, "lease_window": "30s"}
DRIVER = """
import runpy, sys
made = runpy.run_path(sys.argv[1], run_name="integration_conftest")
from pathlib import Path
from mlops.budgets.opening import open_lease_queue
from mlops.registry.mlflow_runs import RunMirror
folder = Path(sys.argv[2])
project = made["RayProject"](folder)
project.leases = open_lease_queue(project.places, project.ledger, project.clock, project.ids)
project.mirror = RunMirror(sys.argv[3], None, spool_folder=folder / "spool")
outcome = project.launch(project.spec(**{SPEC}), say=lambda line: print(line, flush=True))
print(outcome.sweep_id, flush=True)
project.mirror.close(timeout_seconds=120)
"""


class Chaos:
    """One sweep and everything around it that can be killed."""

    def __init__(self, project, folder):
        self.project, self.folder, self.chance = project, folder, random.Random(4)
        self.port = free_port()
        self.script = folder / "drive.py"
        self.script.write_text(textwrap.dedent(DRIVER).replace("{SPEC}", repr(SPEC)))
        self.killed = []
        self.server = self.start_server()

    def start_server(self):
        folder = self.folder / "server"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.sqlite"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        return subprocess.Popen(command, env=environment, **quiet)

    def stop_server(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def run(self):
        """Start the driver until one ends well; while it drives, kill something again and again."""
        waiting = list(KILLS)
        for _ in range(len(KILLS) + 3):
            driver = self.start_driver()
            while driver.poll() is None:
                if waiting and self.is_training():
                    time.sleep(self.chance.uniform(0.0, 2.0))
                    if self.kill(waiting[0], driver):
                        self.killed.append(waiting.pop(0))
                time.sleep(0.2)
            if driver.returncode == 0:
                return (self.folder / "driver.log").read_text().split()[-1]
        raise AssertionError((self.folder / "driver.log").read_text()[-3000:])

    def start_driver(self):
        conftest = str(Path(__file__).with_name("conftest.py"))
        uri = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(self.script), conftest, str(self.folder), uri]
        with (self.folder / "driver.log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def is_training(self):
        with self.project.ledger.read() as connection:
            rows = connection.execute(sql_trials.attempts.select()).all()
        return any(row.ended_us is None for row in rows) and bool(workers_of(self.project))

    def kill(self, what, driver):
        if what == "driver":
            driver.kill()
        elif what == "mlflow":
            self.stop_server()
            self.server = self.start_server()
        else:
            found = workers_of(self.project) if what == "worker" else raylets_of(self.project)
            if not found:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(found).kill()
        return True


def descendants(project):
    keeper = find_local(project.places)
    if keeper is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(keeper.pid).children(recursive=True)
    return []


def name_of(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def workers_of(project):
    return [process for process in descendants(project) if "WorkerActor" in name_of(process)]


def raylets_of(project):
    return [process for process in descendants(project) if name_of(process) == "raylet"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rows_of(project, sweep_id):
    with project.ledger.read() as connection:
        trials = sql_trials.list_trials(connection, sweep_id)
        return [(row.number, row.state, row.params, row.metrics, row.weights_sha256) for row in trials]


def test_chaos_changes_nothing_but_the_time_it_takes(make_project, tmp_path):
    folder = tmp_path / "chaos"
    project = make_project(folder)
    shutil.copytree(ROOT / "budgets", project.places.budgets_folder)
    open_lease_queue(project.places, project.ledger, project.clock, project.ids)
    chaos = Chaos(project, folder)
    try:
        sweep_id = chaos.run()
        assert Counter(chaos.killed) == Counter(KILLS)

        with project.ledger.read() as connection:
            events = list(load_events(connection))
            differences = find_differences(connection)
        told = Counter(event.subject for event in events if event.kind == "trial.finished")
        assert told == {f"{sweep_id}/{number}": 1 for number in range(TRIALS)}  # every trial told once
        assert not differences
        assert LeaseBook(project.ledger, project.clock, project.ids).list_live() == ()

        with connected(project.places):
            import ray

            states = {group["state"] for group in ray.util.placement_group_table().values()}
            assert states <= {"REMOVED"}
            assert workers_of(project) == []

        shown = list_runs(f"http://127.0.0.1:{chaos.port}", sweep_id)
        assert sorted(shown) == list(range(TRIALS))  # MLflow lost nothing and has nothing twice
        assert all(status == "FINISHED" and steps == [0, 1, 2] for status, steps in shown.values())
    finally:
        chaos.stop_server()

    calm = make_project(tmp_path / "calm", like=project)
    expected = calm.launch(calm.spec(**SPEC))
    assert rows_of(project, sweep_id) == rows_of(calm, expected.sweep_id)
    left = descendants(project)
    stop_local(project.places)
    assert [process for process in left if process.is_running() and name_of(process)] == []


def list_runs(uri, sweep_id):
    """Trial number to status and steps of its loss."""
    client = open_client(uri, artifacts=None)
    found = {}
    for run in client.search_runs(["1"], f"tags.`mlops.key` LIKE '{sweep_id}/%'", max_results=1000):
        number = int(run.data.tags["mlops.trial"])
        assert number not in found
        steps = sorted({metric.step for metric in client.get_metric_history(run.info.run_id, "loss")})
        found[number] = (run.info.status, steps)
    return found
