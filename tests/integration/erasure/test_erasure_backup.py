"""Backup and restore of a real project, and people who withdrew in between."""

import io
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from mlops.datasets.forgetting import forget_subjects
from mlops.datasets.tombstones import load_tombstones, withdraw_subjects
from mlops.deploy.admission import admit
from mlops.deploy.chain_rules import load_machine_keyring
from mlops.erasure.affected import find_affected
from mlops.erasure.purging import purge
from mlops.erasure.reapplying import reapply_withdrawals
from mlops.erasure.scanning import Needles, scan_project
from mlops.errors import LedgerError, MlopsError, ProjectError, Refusal
from mlops.overview.backup import write_backup
from mlops.overview.restore import restore_backup
from mlops.overview.sealing import SealingWriter
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.sql_steps import find_steps
from mlops.serving.oci_layout import ImageLayout

PASSPHRASE = "correct horse battery"
SPEND = "48151.62342"


def write(machine, target):
    return write_backup(machine.project, target, passphrase=PASSPHRASE, say=lambda line: None)


def bring_back(project, source, *, passphrase=PASSPHRASE, is_replacing=False, reapply=reapply_withdrawals, **more):
    return restore_backup(
        project, source, passphrase=passphrase, is_replacing=is_replacing, reapply=reapply,
        say=lambda line: None, **more,
    )  # fmt: skip


@pytest.fixture
def fresh(machine, tmp_path):
    """A clone of the project with an empty `.mlops`."""

    def clone():
        subprocess.run(["git", "clone", "-q", str(machine.world.root), str(tmp_path / "fresh")], check=True)
        places = Places(tmp_path / "fresh")
        return Project(places, machine.project.clock, machine.project.ids, f"sqlite:///{places.ledger_file}")

    return clone


def serve(machine, number):
    image = machine.train(number)
    machine.promote(number)
    machine.reconcile()
    return image


def ask(project, image):
    with project.ledger.read() as connection:
        return admit(
            connection, image, environment="production", places=project.places,
            keyring=load_machine_keyring(project.places),
        )  # fmt: skip


def test_a_fresh_clone_gets_everything_back(machine, fresh, tmp_path):
    image = serve(machine, 1)
    done = write(machine, tmp_path / "x.backup")
    assert done.path.stat().st_mode & 0o077 == 0
    assert b"model 1 memorised" not in done.path.read_bytes()
    project = fresh()
    restored = bring_back(project, done.path)
    assert not isinstance(restored, Refusal)
    again = Project(project.places, project.clock, project.ids, project.ledger_url)
    with machine.project.ledger.read() as old, again.ledger.read() as new:
        assert list(find_steps(new)) == list(find_steps(old))
    assert ImageLayout(project.places.images).is_complete(image)
    for folder in ("candidates", "evidence", "keys"):
        assert files(project.places.state / folder) == files(machine.places.state / folder)
    assert (project.places.keys_folder / "machine.pem").stat().st_mode & 0o077 == 0
    assert not isinstance(ask(again, image), Refusal), "what served may serve again"
    assert not project.places.restore_marker.exists()
    again.ledger.close()


def files(folder):
    """With their time: of two gate results the later one counts."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(path.relative_to(folder), path.read_bytes(), int(path.stat().st_mtime)) for path in found]


def test_an_old_backup_does_not_bring_a_person_back(machine, fresh, tmp_path):
    old = serve(machine, 1)
    done = write(machine, tmp_path / "x.backup")
    forget_subjects(machine.places, "people", [machine.subject])
    machine.world.commit("Forget")
    new = serve(machine, 2)
    affected = find_affected(machine.project, "people", frozenset({machine.subject}))
    purge(machine.project, affected, say=lambda line: None, runtimes=[machine.world.runtime])
    machine.world.commit("Purged")
    project = fresh()
    restored = bring_back(project, done.path)
    assert not isinstance(restored, Refusal) and restored.withdrawals == 1, restored
    assert not ImageLayout(project.places.images).has_blob(old) and old != new
    again = Project(project.places, project.clock, project.ids, project.ledger_url)
    refused = ask(again, old)
    assert isinstance(refused, Refusal) and "erased" in {reason.code for reason in refused.reasons}
    found = scan_project(again, Needles(frozenset({machine.subject}), frozenset({SPEND})))
    assert found == ()
    again.ledger.close()


def test_a_project_keeps_what_it_knows_of_withdrawals_when_its_history_is_given_up(machine, tmp_path):
    serve(machine, 1)
    done = write(machine, tmp_path / "x.backup")
    withdraw_subjects(machine.places, "people", [machine.subject])
    for instance in machine.world.runtime.list_instances():
        machine.world.runtime.stop(instance, timeout_seconds=1)
    refused = bring_back(machine.project, done.path)
    assert isinstance(refused, Refusal) and refused.reasons[0].code == "not-empty"
    restored = bring_back(machine.project, done.path, is_replacing=True)
    assert not isinstance(restored, Refusal)
    assert load_tombstones(machine.places, "people") == {machine.subject}


def test_withdrawals_that_only_the_backup_knows_hold_after_the_restore(machine, fresh, tmp_path):
    serve(machine, 1)
    withdraw_subjects(machine.places, "people", [machine.subject])
    done = write(machine, tmp_path / "x.backup")
    project = fresh()
    assert not isinstance(bring_back(project, done.path), Refusal)
    assert load_tombstones(project.places, "people") == {machine.subject}


def test_nothing_serves_between_a_killed_restore_and_the_next_one(machine, fresh, tmp_path):
    image = serve(machine, 1)
    done = write(machine, tmp_path / "x.backup")
    project = fresh()

    def die(_project):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring_back(project, done.path, reapply=die)
    again = Project(project.places, project.clock, project.ids, project.ledger_url)
    refused = ask(again, image)
    assert isinstance(refused, Refusal) and "restore-unfinished" in {reason.code for reason in refused.reasons}
    assert not isinstance(bring_back(again, done.path), Refusal)
    once_more = Project(project.places, project.clock, project.ids, project.ledger_url)
    assert not isinstance(ask(once_more, image), Refusal)
    once_more.ledger.close()


def make(tmp_path, members, *, kind=tarfile.REGTYPE):
    """A backup made by hand by somebody who knows the passphrase."""
    path = tmp_path / "forged.backup"
    with path.open("wb") as stream:
        sealed = SealingWriter(stream, PASSPHRASE)
        packer = zstandard.ZstdCompressor().stream_writer(sealed, closefd=False)
        with tarfile.open(fileobj=packer, mode="w|") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.type, entry.linkname = len(content), kind, "/etc/passwd"
                archive.addfile(entry, io.BytesIO(content))
        packer.close()
        sealed.close()
    return path


def a_newer_ledger(tmp_path):
    path = tmp_path / "newer.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO schema_version VALUES (9999)")
    connection.close()
    return path.read_bytes()


INDEX = b'{"format": 1, "mlops": "0", "made_at": "now", "state": "/x", "tombstones": {}}'
FORGED = {
    "a path that climbs": lambda tmp: make(tmp, {"keys/../../x": b""}),
    "an absolute path": lambda tmp: make(tmp, {"/etc/x": b""}),
    "a file that no backup has": lambda tmp: make(tmp, {"deploy/roles.yaml": b""}),
    "a link": lambda tmp: make(tmp, {"keys/x": b""}, kind=tarfile.SYMTYPE),
    "a device": lambda tmp: make(tmp, {"keys/x": b""}, kind=tarfile.CHRTYPE),
    "nothing": lambda tmp: make(tmp, {}),
    "a newer format": lambda tmp: make(tmp, {"backup.json": INDEX.replace(b'"format": 1', b'"format": 2')}),
    "no ledger": lambda tmp: make(tmp, {"backup.json": INDEX}),
    "a newer ledger": lambda tmp: make(tmp, {"backup.json": INDEX, "ledger.sqlite": a_newer_ledger(tmp)}),
    "a ledger that is none": lambda tmp: make(tmp, {"backup.json": INDEX, "ledger.sqlite": b"x" * 5000}),
}


@pytest.mark.parametrize("case", FORGED)
def test_what_is_no_backup_changes_nothing(machine, fresh, tmp_path, case):
    project = fresh()
    with pytest.raises((ProjectError, LedgerError)) as caught:
        bring_back(project, FORGED[case](tmp_path))
    assert len(caught.value.message.splitlines()) == 1
    left = {path.name for path in project.places.state.iterdir()} if project.places.state.exists() else set()
    assert {name for name in left if not name.startswith("ledger.sqlite")} == set()
    assert not Path(tmp_path / "x").exists()


def test_a_backup_of_a_project_without_anything_can_be_tried_out(machine, tmp_path):
    done = write(machine, tmp_path / "x.backup")
    tried = bring_back(machine.project, done.path, is_dry_run=True)
    assert not isinstance(tried, Refusal) and tried.files > 0
    shutil.copy(done.path, tmp_path / "cut")
    (tmp_path / "cut").write_bytes(done.path.read_bytes()[:-10])
    with pytest.raises(MlopsError, match="changed or cut off"):
        bring_back(machine.project, tmp_path / "cut", is_dry_run=True)
