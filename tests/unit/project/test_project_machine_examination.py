"""What is looked at on the machine."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.clock import FakeClock
from mlops.ledger.connection import open_ledger
from mlops.places import Places
from mlops.project.diagnosis import Diagnosis
from mlops.project.machine_examination import PACKAGES, examine_machine
from mlops.project.processes import find_held_locks, find_run_leftovers, list_processes
from mlops.training import sql_trials

ROOT = Path(__file__).parents[3]
NOW = 1_800_000_000.0


def look(root: Path | None) -> dict[str, Diagnosis]:
    places = Places(root) if root else None
    return {found.subject: found for found in examine_machine(places, now_seconds=NOW)}


def test_the_packages_are_those_of_the_script():
    lines = (ROOT / "scripts" / "system-packages.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    assert sorted(names) == sorted(PACKAGES)


def test_a_missing_package_is_a_note_with_the_command_and_a_missing_git_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = look(None)["system packages"]
    assert found.status == "broken"
    assert "sudo apt-get install --yes git" in found.hint
    (tmp_path / "git").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "git").chmod(0o755)
    found = look(None)["system packages"]
    assert found.status == "note"
    assert any(item.startswith("podman: ") for item in found.items)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "system.sh").touch()
    assert look(tmp_path)["system packages"].hint == "run `sudo scripts/system.sh`"


def test_a_port_that_another_program_holds_is_named(tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        folder = tmp_path / "deploy" / "environments"
        folder.mkdir(parents=True)
        text = f"version: 1\nname: staging\napprovals: {{needed: 0}}\ntraffic: {{ports: {{churn: {port}}}}}\n"
        (folder / "staging.yaml").write_text(text, encoding="utf-8")
        found = look(tmp_path)[f"port {port}"]
    assert found.status == "note"
    assert "taken by" in found.text
    assert look(tmp_path)[f"port {port}"].status == "fine"


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_this_projects_proxy_answers_for_it(tmp_path: Path, is_ours: bool):
    proxy = """if True:
        import pathlib, socket, sys
        pathlib.Path("/proc/self/comm").write_text("haproxy")
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        sys.stdin.read()
        """
    folder = tmp_path / ".mlops" / "serving" / "staging" / "churn"
    folder.mkdir(parents=True)
    where = folder if is_ours else tmp_path
    with subprocess.Popen([sys.executable, "-c", proxy], cwd=where, stdin=-1, stdout=-1, text=True) as running:
        assert running.stdin is not None and running.stdout is not None
        port = int(running.stdout.readline())
        (folder / "proxy.pid").write_text(str(running.pid), encoding="utf-8")
        rules = tmp_path / "deploy" / "environments" / "staging.yaml"
        rules.parent.mkdir(parents=True)
        text = f"version: 1\nname: staging\napprovals: {{needed: 0}}\ntraffic: {{ports: {{churn: {port}}}}}\n"
        rules.write_text(text, encoding="utf-8")
        found = look(tmp_path)[f"port {port}"]
        running.stdin.close()
    expected = ("fine", "churn in staging answers there") if is_ours else ("note", "taken by haproxy")
    assert (found.status, found.text[: len(expected[1])]) == expected


def test_keys_that_others_can_read_break(tmp_path: Path):
    keys = tmp_path / ".mlops" / "keys"
    keys.mkdir(parents=True, mode=0o755)
    keys.chmod(0o755)
    assert look(tmp_path)[".mlops/keys"].hint.startswith("chmod 700")
    keys.chmod(0o700)
    assert ".mlops/keys" not in look(tmp_path)


def test_what_waits_for_mlflow_and_what_killed_commands_left_is_said(tmp_path: Path):
    spool = tmp_path / ".mlops" / "mlflow" / "spool"
    spool.mkdir(parents=True)
    (spool / "1-a.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    scratch = tmp_path / ".mlops" / "candidates" / ".abc.x1y2z3_4"
    scratch.mkdir(parents=True)
    os.utime(scratch, (NOW - 2 * 86_400, NOW - 2 * 86_400))
    found = look(tmp_path)
    assert found["MLflow"].text.startswith("2 entries wait")
    assert found["leftovers"].items == (".mlops/candidates/.abc.x1y2z3_4",)
    os.utime(scratch, (NOW, NOW))
    assert "leftovers" not in look(tmp_path)  # somebody may still be writing it


def test_a_held_lock_names_its_process(tmp_path: Path):
    state = tmp_path / ".mlops"
    state.mkdir()
    (state / "free.lock").touch()
    with (state / "ray.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:  # our own locks are left out, so another process has to look
            (held,) = find_held_locks(Places(tmp_path))
            is_right = held.path == ".mlops/ray.lock" and held.pid == os.getppid() and "python" in held.command
            named = [one for one in list_processes(Places(tmp_path)) if one.pid == os.getppid()]
            is_right = is_right and named[0].open_files == (".mlops/ray.lock",)
            os._exit(0 if is_right else 1)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_version_that_is_not_the_locked_one_breaks(tmp_path: Path):
    (tmp_path / "requirements.lock").write_text("click==0.1\n", encoding="utf-8")
    found = look(tmp_path)["locked versions"]
    assert (found.status, len(found.items)) == ("broken", 1)


def test_outside_of_a_project_the_machine_is_still_examined():
    found = look(None)
    assert {"Python", "disk", "memory", "system packages", "git identity", "confinement"} <= set(found)


def test_a_sweep_whose_driver_died_is_named_with_its_groups(tmp_path):
    clock = FakeClock()
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock)
    with ledger.write() as transaction:
        sweep = dict.fromkeys(("product", "reason", "mlflow_run_id", "wish"), "") | {"spec": {}, "inputs": {}}
        sweep |= {"state": "running", "driver": "elsewhere:7:1", "started_us": 0, "seen_us": 0}
        sql_trials.insert(transaction.connection, sql_trials.sweeps, sweep_id="sweep-1", **sweep)
        lease = {"lease_id": "l", "worker_group": "group-9", "fencing_token": 1, "accelerators": "1xcpu"}
        sql_trials.insert(
            transaction.connection, sql_trials.group_leases, sweep_id="sweep-1", started_us=0, ended_us=None, **lease
        )
    found = find_run_leftovers(Places(tmp_path), ledger=ledger, now_us=10**15)
    assert [(one.subject, "group-9" in one.text, "resume sweep-1" in one.hint) for one in found] == [
        ("sweep-1", True, True)
    ]
    ledger.close()
