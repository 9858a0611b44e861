"""A cluster of its own: its files, its price, its end, and the end of one whose driver died."""

import importlib.util
import json
import socket
from pathlib import Path

import jsonschema
import pytest

from mlops.budgets.lease_types import Lease
from mlops.errors import EnvironmentFault, ProjectError, Refusal
from mlops.places import Places
from mlops.training.ray_ephemeral import ClusterLeases, CommandStarter, started_cluster, stop_orphans
from mlops.training.render_ray_cluster import plan_nodes, render_cluster, verify_cluster

IMAGE = "registry.example/train@sha256:" + "a" * 64
LOCK = "sha256:" + "b" * 64


class MemoryStarter:
    def __init__(self, error=None):
        self.running, self.log, self.error = {}, [], error

    def find_kind(self):
        return "kuberay"

    def start(self, record, *, deadline_seconds):
        self.log.append(("start", record.name, deadline_seconds))
        self.running[record.name] = record
        if self.error:
            raise self.error
        return "ray://somewhere:10001"

    def stop(self, record):
        self.log.append(("stop", record.name))
        self.running.pop(record.name, None)


def spec_of(stage, **changes):
    own = {"image": IMAGE, **changes.pop("ephemeral", {})}
    return stage.spec(**{"cluster": "ephemeral", "ephemeral": own, "groups": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "nodes", "offered", "limits"),
    [
        ({"workers": 2, "accelerators": "0.5xcpu"}, (3, 1), {"CPU": 1}, {"cpu": "1"}),
        ({"workers": 4, "accelerators": "2xh100"}, (3, 1), {"CPU": 16, "GPU": 8}, {"cpu": "16", "nvidia.com/gpu": "8"}),
        ({"workers": 3, "accelerators": "4xh100"}, (3, 2), {"CPU": 16, "GPU": 8}, {"nvidia.com/gpu": "8"}),
        ({"workers": 4, "accelerators": "4xtpu-v5"}, (3, 4), {"CPU": 8, "tpu-v5": 4}, {"google.com/tpu": "4"}),
    ],
)
def test_a_group_gets_whole_machines_and_they_come_and_go_together(stage, changes, nodes, offered, limits):
    spec = spec_of(stage, **changes)
    plan = plan_nodes(spec)
    assert (plan.groups, plan.nodes_per_group) == nodes
    assert plan.to_resources() == offered
    manifest = render_cluster(spec, kind="kuberay", name="sweep-1", lock=LOCK)
    (workers,) = manifest["spec"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["numOfHosts"]) == nodes, "a replica is one group: a slice is never split"
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    assert limits.items() <= container["resources"]["limits"].items()
    assert manifest["metadata"]["annotations"]["mlops/lock-digest"] == LOCK
    assert manifest["spec"]["autoscalerOptions"] == {"idleTimeoutSeconds": 300}
    up = render_cluster(spec, kind="ray-up", name="sweep-1", lock=LOCK)
    assert up["available_node_types"]["workers"]["resources"] == offered
    assert up["max_workers"] == nodes[0] * nodes[1]
    assert up["docker"]["image"] == IMAGE


def test_rays_own_schema_takes_the_file_for_ray_up(stage):
    folder = Path(importlib.util.find_spec("ray").origin).parent  # found without loading it
    schema = json.loads((folder / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(render_cluster(spec_of(stage), kind="ray-up", name="sweep-1", lock=LOCK), schema)


@pytest.mark.parametrize(("kind", "field"), [("kuberay", "metadata"), ("ray-up", "cluster_name")])
def test_a_file_that_does_not_fit_its_schema_is_refused_with_the_place(stage, kind, field):
    content = render_cluster(spec_of(stage), kind=kind, name="sweep-1", lock=LOCK)
    with pytest.raises(ProjectError) as caught:
        verify_cluster({**content, field: "No Name"}, kind=kind)
    assert any(item.startswith(f"{field}: ") for item in caught.value.items)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ephemeral": {"image": "train:latest"}}, "image"),
        ({"ephemeral": None}, "needs `ephemeral"),
        ({"runtime_env": {"pip": ["x"]}}, "runtime_env needs `cluster: existing`"),
    ],
)
def test_the_spec_says_what_is_missing(stage, changes, words):
    with pytest.raises(ValueError, match=words):
        stage.spec(**{"cluster": "ephemeral", "ephemeral": {"image": IMAGE}, **changes})


def test_a_worker_larger_than_any_machine_is_refused(stage):
    with pytest.raises(ProjectError, match="needs 16xh100, a machine has 8"):
        plan_nodes(spec_of(stage, accelerators="16xh100"))


def open_cluster(stage, starter, leases, spec=None):
    return started_cluster(
        Places(stage.folder), spec or spec_of(stage, workers=2, accelerators="2xh100"), sweep_id="sweep-1",
        spender="ann", lock=LOCK, leases=leases, starter=starter, say=stage.lines.append,
    )  # fmt: skip


def test_all_machines_are_paid_before_they_start_and_until_they_ended(stage):
    starter, leases = MemoryStarter(), ClusterLeases(stage.leases, clock=stage.clock)
    with open_cluster(stage, starter, leases) as address:
        assert address == "ray://somewhere:10001"
        (paid,) = stage.leases.live.values()
        assert str(paid.accelerators) == "12xh100"
        stage.clock.advance(100)
    assert starter.log == [("start", "sweep-1", 900.0), ("stop", "sweep-1")]
    assert stage.leases.settled == {paid.lease_id: paid.started_us + 100_000_000}
    assert not list((stage.folder / ".mlops" / "clusters").glob("*.json"))


def test_a_cluster_that_does_not_start_is_ended_and_charged(stage):
    starter = MemoryStarter(EnvironmentFault("not ready at the deadline"))
    leases = ClusterLeases(stage.leases, clock=stage.clock)
    with pytest.raises(EnvironmentFault, match="not ready"), open_cluster(stage, starter, leases):
        raise AssertionError("never inside")
    assert not starter.running
    assert not stage.leases.live


def test_without_money_no_machine_starts(stage, leases_of):
    starter, poor = MemoryStarter(), leases_of(stage.clock, budget=0)
    leases = ClusterLeases(poor, clock=stage.clock)
    with open_cluster(stage, starter, leases) as answer:
        assert isinstance(answer, Refusal)
    assert not starter.log
    outcome = stage.run(spec_of(stage), answer)
    assert isinstance(outcome, Refusal), "so the sweep is refused, with the reasons of its budget"
    assert outcome.reasons == answer.reasons


def test_groups_inside_cost_nothing_more_and_the_sweep_runs(stage):
    starter, leases = MemoryStarter(), ClusterLeases(stage.leases, clock=stage.clock)
    spec = spec_of(stage, trials=6, groups=2, lease_window="20s", ephemeral={"start_deadline": "5s"})
    with open_cluster(stage, starter, leases, spec):
        outcome = stage.run(spec, stage.crew(seconds=lambda trial, epoch: 9.0), leases)
        assert {trial.state for trial in outcome.trials} == {"COMPLETE"}
        assert len(stage.leases.requests) == 1, "one lease for all machines"
        assert isinstance(next(iter(stage.leases.live.values())), Lease)
        assert stage.leases.budget < 10**9 - 1, "it was renewed with the groups"
    assert len(stage.leases.settled) == 1


def test_the_next_command_ends_a_cluster_whose_driver_died(stage):
    starter, leases = MemoryStarter(), ClusterLeases(stage.leases, clock=stage.clock)
    places = Places(stage.folder)
    ends = {"leases": stage.leases, "starter": starter, "clock": stage.clock, "say": stage.lines.append}
    with open_cluster(stage, starter, leases):
        assert stop_orphans(places, **ends) == (), "its driver lives"
        (file,) = (places.state / "clusters").glob("*.json")
        dead = json.dumps({**json.loads(file.read_text()), "driver": f"{socket.gethostname()}:1:1"})
        file.write_text(dead)
        assert stop_orphans(places, **ends) == ("sweep-1",)
        assert not starter.running
        assert not stage.leases.live
        leases._lease = None  # as after the death of this process
    assert stop_orphans(places, **ends) == ()


def test_what_is_not_installed_is_said_in_one_sentence():
    with pytest.raises(EnvironmentFault, match="needs `kubectl` or `ray`, and neither is installed"):
        CommandStarter(lambda name: None).find_kind()


@pytest.mark.parametrize(
    ("kind", "address", "said"),
    [
        (
            "kuberay",
            "ray://sweep-1-head-svc.default.svc:10001",
            ["apply -f FILE", "wait raycluster/sweep-1 -n default", "delete raycluster/sweep-1 -n default"],
        ),
        ("ray-up", "ray://10.0.0.7:10001", ["up -y --no-config-cache FILE", "get-head-ip FILE", "down -y FILE"]),
    ],
)
def test_the_commands_of_each_kind(stage, tmp_path, kind, address, said):
    script, log = tmp_path / "command", tmp_path / "log"
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\necho 10.0.0.7\n')
    script.chmod(0o755)
    wanted = {"kuberay": "kubectl", "ray-up": "ray"}[kind]
    starter = CommandStarter(lambda name: str(script) if name == wanted else None)
    with open_cluster(stage, starter, ClusterLeases(stage.leases, clock=stage.clock)) as found:
        assert found == address
    lines = log.read_text().replace(str(stage.folder / ".mlops/clusters/sweep-1.yaml"), "FILE").splitlines()
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True)), lines


def test_a_command_that_fails_says_its_last_line(stage, tmp_path):
    script = tmp_path / "kubectl"
    script.write_text("#!/bin/sh\necho 'forbidden: no rights' >&2\n[ $1 = delete ]\n")
    script.chmod(0o755)
    starter = CommandStarter(lambda name: str(script))
    leases = ClusterLeases(stage.leases, clock=stage.clock)
    with pytest.raises(EnvironmentFault, match="forbidden: no rights"), open_cluster(stage, starter, leases):
        raise AssertionError("never inside")
