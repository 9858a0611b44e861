"""Several raylets on one machine: a node is lost in the middle of a group; a sweep has a cluster of its own.

Run by test_training_ray_clusters.py in a process of its own: Ray keeps the first token of a process for good.
"""

import os
import runpy
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from mlops.training.attempt import GroupShape
from mlops.training.sweep import SweepOutcome

pytestmark = pytest.mark.timeout(900)
RayProject = runpy.run_path(str(Path(__file__).with_name("conftest.py")), run_name="ray_conftest")["RayProject"]


@pytest.fixture
def project(tmp_path):
    """A project without a local Ray: this process knows no token."""
    made = RayProject(tmp_path / "own")
    yield made
    made.ledger.close()


def start_cluster(nodes, **resources):
    """A head without room for workers, and nodes; Ray gives each 30 s to start, which a busy machine may not keep."""
    from ray.cluster_utils import Cluster

    for is_last in (False, False, True):
        made = Cluster()
        try:
            made.add_node(num_cpus=0, include_dashboard=False)
            added = [made.add_node(**resources) for _ in range(nodes)]
            made.wait_for_nodes()
            return made, added
        except Exception:
            made.shutdown()
            if is_last:
                raise
    raise AssertionError("the loop returns or raises")


@pytest.fixture(scope="module")
def nodes():
    """Two nodes with two CPUs and one logical GPU each."""
    made, added = start_cluster(2, num_cpus=2, num_gpus=1)
    yield made, added
    made.shutdown()


@pytest.fixture
def cluster(nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nodes[0].address)
    return nodes


def test_a_node_lost_in_the_middle_of_a_group_costs_a_preemption_and_no_result(undisturbed, project, cluster):
    """The other worker hears at once that its peer is gone, the cluster seconds later that the node is."""
    made, nodes = cluster
    losers = []

    def say(line):
        if "trial 1 epoch 2/3" in line and not losers:
            raylet = psutil.Process(nodes[1].all_processes["raylet"][0].process.pid)
            workers = [each for each in raylet.children(recursive=True) if "WorkerActor" in each.name()]
            raylet.suspend()  # it sees nothing of what follows
            for worker in workers:
                worker.kill()
            assert workers
            losers.append(threading.Timer(3.0, raylet.kill))
            losers[0].start()
            made.add_node(num_cpus=2, num_gpus=1)

    outcome = project.launch(project.calm_spec(groups=1, accelerators="2xcpu", max_failures=0), say=say)
    losers[0].join()
    assert results_of(outcome) == results_of(undisturbed.outcome)
    assert not project.leases.live
    assert leaked_groups() == []


def results_of(outcome):
    return [(trial.state, trial.params, trial.metrics, trial.weights_sha256) for trial in outcome.trials]


def leaked_groups():
    import ray

    ray.init(address=os.environ["RAY_ADDRESS"], namespace="mlops", log_to_driver=False, configure_logging=False)
    try:
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            left = [g["name"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]
            if not left:
                return []
            time.sleep(0.5)
        return left
    finally:
        ray.shutdown()


def test_a_group_takes_whole_nodes_or_nothing(project, cluster):
    """Three logical GPUs are asked for where there are two: nothing is held after the deadline."""
    with project.crew(project.spec()) as crew:
        until_us = time.monotonic_ns() // 1_000 + 60_000_000
        crew.start_group("g", shape=GroupShape(3, "h100", 1.0), until_us=until_us, start_deadline_seconds=2.0)
        heard = []
        while not heard:
            heard = crew.next_events(timeout_seconds=1.0)
        (gone,) = heard
        assert "no place" in gone.reason
        crew.stop_group("g")
    assert leaked_groups() == []


class RayletStarter:
    """A cluster of raylets on this machine; implements `ClusterStarter`."""

    def __init__(self):
        self.cluster, self.log = None, []

    def find_kind(self):
        return "ray-up"

    def start(self, record, *, deadline_seconds):
        self.log.append("start")
        content = yaml.safe_load(Path(record.file).read_text())
        offered = content["available_node_types"]["workers"]["resources"]
        self.cluster, _ = start_cluster(content["max_workers"], num_cpus=offered["CPU"])
        return self.cluster.address

    def stop(self, record):
        self.log.append("stop")
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None


@dataclass(frozen=True)
class Undisturbed:
    """A sweep on a cluster of its own, which ended."""

    project: RayProject
    starter: RayletStarter
    outcome: SweepOutcome


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    project, starter = RayProject(tmp_path_factory.mktemp("undisturbed")), RayletStarter()
    own = {"image": "train@sha256:" + "a" * 64, "node_accelerators": 1}
    spec = project.calm_spec(groups=1, accelerators="1xcpu", cluster="ephemeral", ephemeral=own)
    yield Undisturbed(project, starter, project.launch(spec, starter=starter))
    project.ledger.close()


def test_a_sweep_on_a_cluster_of_its_own_ends_and_leaves_no_machine(undisturbed):
    project = undisturbed.project
    assert [trial.state for trial in undisturbed.outcome.trials] == ["COMPLETE"] * 4
    assert undisturbed.starter.log == ["start", "stop"]
    assert not project.leases.live
    assert [str(request.accelerators) for request in project.leases.requests] == ["2xcpu"], "one lease for all machines"
    assert not list((project.places.state / "clusters").glob("*.json"))
