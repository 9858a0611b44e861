"""A Ray cluster of one sweep: paid before it starts, ended with the sweep, and ended by the next command when orphaned.

One lease pays for all its machines from start to end, so worker groups inside it cost nothing more.
Leaves to others: its files (render_ray_cluster), idle machines (the autoscaler), worker groups (ray_group).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import yaml

from mlops.budgets.lease_types import Lease, LeaseRequest, LeaveOrder, Settlement
from mlops.budgets.state import Node
from mlops.clock import SECOND_US, Clock
from mlops.errors import EnvironmentFault, Refusal
from mlops.files import write_atomically
from mlops.places import Places
from mlops.training.leasing import GroupLeases, own_limits, settle_group
from mlops.training.render_ray_cluster import CLIENT_PORT, Kind, NodePlan, cluster_of, plan_nodes, render_cluster
from mlops.training.spec import SweepSpec
from mlops.training.sweep_book import is_driver_alive, this_driver
from mlops.units import Accelerators

STOP_SECONDS = 600.0


@dataclass(frozen=True)
class ClusterRecord:
    """What the next command needs to end a cluster whose driver died; `.mlops/clusters/<name>.json`."""

    name: str
    kind: Kind
    file: str
    """Rendered YAML."""
    namespace: str
    driver: str
    lease_id: str
    fencing_token: int


class ClusterStarter(Protocol):
    """Starts and ends clusters; `CommandStarter` is the real one."""

    def find_kind(self) -> Kind:
        """Which kind of file it starts.

        Raises:
            EnvironmentFault: Nothing is installed that starts one.
        """
        ...

    def start(self, record: ClusterRecord, *, deadline_seconds: float) -> str:
        """Start it and wait until it is ready; gives the address for Ray.

        Raises:
            EnvironmentFault: It was not ready at the deadline.
        """
        ...

    def stop(self, record: ClusterRecord) -> None:
        """End it; nothing happens when there is none.

        Raises:
            EnvironmentFault: It may still run.
        """
        ...


class CommandStarter:
    """By `kubectl` where it is installed, else by `ray up`."""

    def __init__(self, find_command: Callable[[str], str | None] = shutil.which) -> None:
        self._find_command = find_command

    def find_kind(self) -> Kind:
        """See `ClusterStarter`."""
        if self._find_command("kubectl"):
            return "kuberay"
        if self._find_command("ray"):
            return "ray-up"
        raise EnvironmentFault(
            "a cluster of its own needs `kubectl` or `ray`, and neither is installed",
            hint="install one, or set `cluster: local` in the sweep spec",
        )

    def start(self, record: ClusterRecord, *, deadline_seconds: float) -> str:
        """See `ClusterStarter`."""
        until = time.monotonic() + deadline_seconds
        if record.kind == "kuberay":
            self._run("kubectl", "apply", "-f", record.file, seconds=deadline_seconds)
            where = (f"raycluster/{record.name}", "-n", record.namespace)
            left = max(1.0, until - time.monotonic())
            ready = ("--for=jsonpath={.status.state}=ready", f"--timeout={left:.0f}s")
            self._run("kubectl", "wait", *where, *ready, seconds=left + 10)
            return f"ray://{record.name}-head-svc.{record.namespace}.svc:{CLIENT_PORT}"
        self._run("ray", "up", "-y", "--no-config-cache", record.file, seconds=deadline_seconds)
        said = self._run("ray", "get-head-ip", record.file, seconds=max(10.0, until - time.monotonic()))
        return f"ray://{said.strip().splitlines()[-1]}:{CLIENT_PORT}"

    def stop(self, record: ClusterRecord) -> None:
        """See `ClusterStarter`."""
        if record.kind == "kuberay":
            where = (f"raycluster/{record.name}", "-n", record.namespace)
            self._run("kubectl", "delete", *where, "--ignore-not-found", seconds=STOP_SECONDS)
        else:
            self._run("ray", "down", "-y", record.file, seconds=STOP_SECONDS)

    def _run(self, name: str, *arguments: str, seconds: float) -> str:
        command = self._find_command(name)
        if command is None:
            raise EnvironmentFault(f"`{name}` is not installed any more", hint=f"install it, then end {arguments[-1]}")
        shown = " ".join((name, *arguments))
        try:
            done = subprocess.run((command, *arguments), capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(
                f"`{shown}` did not end within {seconds:.0f} s", hint="raise the deadline"
            ) from error
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise EnvironmentFault(f"`{shown}` failed: {said}", hint="run it by hand to see all of its output")
        return done.stdout


class ClusterLeases:
    """Leases of worker groups inside a cluster that is paid as a whole; implements `GroupLeases`.

    Each renewal of a group pays the whole cluster so far ahead; a refusal reaches the group.
    """

    def __init__(self, leases: GroupLeases, *, clock: Clock) -> None:
        self._leases, self._clock = leases, clock
        self._lease: Lease | None = None
        self._given, self._renewals = 0, 0

    def pay(self, request: LeaseRequest) -> Lease | Refusal:
        """Pay for the machines before they start; they are nobody else's, so they do not wait in the queue."""
        answer = self._leases.reserve_own(request)
        if isinstance(answer, Lease):
            self._lease, self._given, self._renewals = answer, 0, 0
        return answer

    def end(self) -> None:
        """The machines are gone: charge what was used."""
        lease, self._lease = self._lease, None
        if lease is not None:
            settle_group(self._leases, lease.lease_id, fencing_token=lease.fencing_token, ended_us=self._clock.now_us())

    def reserve_own(self, request: LeaseRequest) -> Lease | Refusal:
        """See `GroupLeases`."""
        return self._leases.reserve_own(request)

    def reserve(self, request: LeaseRequest) -> Lease | Refusal:
        """A part of the cluster; without one, nothing is paid yet and the queue is asked."""
        if self._lease is None:
            return self._leases.reserve(request)
        self._given += 1
        paid = self._extend(request.window_seconds)
        name = f"{self._lease.lease_id}/{self._given}"
        return paid if isinstance(paid, Refusal) else replace(paid, lease_id=name, accelerators=request.accelerators)

    def renew(self, lease_id: str, *, fencing_token: int, window_seconds: float, key: str) -> Lease | Refusal:
        """See `Leases`."""
        if self._lease is None or not lease_id.startswith(f"{self._lease.lease_id}/"):
            return self._leases.renew(lease_id, fencing_token=fencing_token, window_seconds=window_seconds, key=key)
        paid = self._extend(window_seconds)
        return paid if isinstance(paid, Refusal) else replace(paid, lease_id=lease_id)

    def settle(self, lease_id: str, *, fencing_token: int, ended_us: int | None, key: str) -> Settlement | Refusal:
        """See `Leases`; a part of a cluster is charged with the cluster."""
        if "/" in lease_id:
            return Settlement(lease_id, ended_us or self._clock.now_us(), 0, 0, "settled")
        return self._leases.settle(lease_id, fencing_token=fencing_token, ended_us=ended_us, key=key)

    def report_nodes(self, found: Iterable[Node], *, kind: str) -> None:
        """Its machines are not offered to others."""

    def withdraw(self, key: str) -> None:
        """See `GroupLeases`."""
        if self._lease is None:
            self._leases.withdraw(key)

    def find_order(self, lease_id: str) -> LeaveOrder | None:
        """See `GroupLeases`; nobody else can use its machines."""
        return None

    def _extend(self, seconds: float) -> Lease | Refusal:
        assert self._lease is not None
        if self._lease.window_ends_us - self._clock.now_us() >= seconds * SECOND_US:
            return self._lease
        self._renewals += 1
        name, token = self._lease.lease_id, self._lease.fencing_token
        key = f"{name}:renew:{self._renewals}"
        answer = self._leases.renew(name, fencing_token=token, window_seconds=seconds, key=key)
        if isinstance(answer, Lease):
            self._lease = answer
        return answer


@contextmanager
def started_cluster(
    places: Places,
    spec: SweepSpec,
    *,
    sweep_id: str,
    spender: str,
    lock: str,
    leases: ClusterLeases,
    starter: ClusterStarter,
    say: Callable[[str], None],
) -> Iterator[str | Refusal]:
    """A cluster for the sweep's groups inside the block; gives its address, or why the budget does not pay for it.

    Raises:
        EnvironmentFault: It did not start before its deadline.
    """
    plan, cluster, kind = plan_nodes(spec), cluster_of(spec), starter.find_kind()
    content = render_cluster(spec, kind=kind, name=sweep_id, lock=lock)
    paid = leases.pay(_ask(spec, plan, sweep_id=sweep_id, spender=spender))
    if isinstance(paid, Refusal):
        yield paid
        return
    folder = places.state / "clusters"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{sweep_id}.yaml"
    write_atomically(file, yaml.safe_dump(content, sort_keys=False))
    record = ClusterRecord(
        sweep_id, kind, str(file), cluster.namespace, this_driver(), paid.lease_id, paid.fencing_token
    )
    write_atomically(file.with_suffix(".json"), json.dumps(asdict(record)))  # before it starts: it may be half started
    try:
        say(f"starts a cluster of {plan.groups * plan.nodes_per_group} machines ({kind})")
        yield starter.start(record, deadline_seconds=cluster.start_deadline)
    finally:
        starter.stop(record)  # when this fails, the record stays, and the next command tries again
        file.with_suffix(".json").unlink(missing_ok=True)
        leases.end()


def find_orphans(places: Places, *, clock: Clock) -> tuple[ClusterRecord, ...]:
    """The clusters on record whose driver is dead."""
    records = (_read_record(path) for path in sorted((places.state / "clusters").glob("*.json")))
    now_us = clock.now_us()
    return tuple(
        record
        for record in records
        if record is not None and not is_driver_alive(record.driver, seen_us=now_us, now_us=now_us)
    )


def stop_orphans(
    places: Places, *, leases: GroupLeases, starter: ClusterStarter, clock: Clock, say: Callable[[str], None]
) -> tuple[str, ...]:
    """End the clusters whose driver is dead, and their leases; gives their names."""
    orphans = find_orphans(places, clock=clock)
    for record in orphans:
        starter.stop(record)
        settle_group(leases, record.lease_id, fencing_token=record.fencing_token, ended_us=clock.now_us())
        (places.state / "clusters" / f"{record.name}.json").unlink(missing_ok=True)
        say(f"ended the cluster {record.name}, whose driver is dead")
    return tuple(record.name for record in orphans)


def _read_record(path: Path) -> ClusterRecord | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ClusterRecord(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _ask(spec: SweepSpec, plan: NodePlan, *, sweep_id: str, spender: str) -> LeaseRequest:
    """All machines, until the cluster must have started and its first groups work."""
    return LeaseRequest(
        key=f"{sweep_id}:cluster:{time.time_ns()}",
        budget=spec.budget,
        accelerators=Accelerators(plan.kind, float(plan.accelerators)),
        window_seconds=cluster_of(spec).start_deadline + spec.lease_window,
        grace_seconds=spec.grace,
        checkpoint_seconds=spec.checkpoint_time,
        holder=this_driver(),
        sweep_id=sweep_id,
        limits=own_limits(spec, sweep_id=sweep_id),
        spender=spender,
    )
