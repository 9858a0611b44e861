"""Restoring a backup: everything is opened and examined aside before a byte of the project changes, then moved in.

From the first move until withdrawals are applied again a marker lies in `.mlops/`: nothing is admitted to serve while
it does. Who withdrew after the backup was made stays withdrawn: tombstones of git, of the project and of the backup
count together, and erasure's own records of the project win over older ones.
Leaves to others: purging what the backup brought back (mlops/erasure, given as `reapply`), sealing (sealing.py).
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import zstandard

from mlops.clock import render_time
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import object_path
from mlops.datasets.tombstones import restore_withdrawals
from mlops.deploy.desired_state import desired_file
from mlops.deploy.runtimes import list_runtimes
from mlops.deploy.sql_deployments import GOOD, end_deployment, list_environments, load_deployments, load_desired
from mlops.errors import EnvironmentFault, LedgerError, MlopsError, ProjectError, Reason, Refusal
from mlops.files import remove_tree, write_atomically
from mlops.ledger.copying import carry_over, replace_ledger, verify_snapshot
from mlops.ledger.sql_events import find_head
from mlops.overview.backup import FOLDERS, FORMAT, INDEX, LEDGER, MLFLOW, OBJECTS
from mlops.overview.sealing import OpeningReader
from mlops.project.opening import Project
from mlops.registry.mlflow_backup import is_in_backup, relocate_mlflow

_SINGLE = (INDEX, LEDGER, MLFLOW)
_TREES = (*FOLDERS, OBJECTS, "checkpoints")
_FAULTS = (tarfile.TarError, zstandard.ZstdError, EOFError)
_CARRIED = "erasure_"


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    made_at: str
    """When the backup was made."""
    files: int
    withdrawals: int
    """Tombstones that hold now."""
    lines: tuple[str, ...]
    """What was applied again, for people."""


def restore_backup(
    project: Project,
    source: Path,
    *,
    passphrase: str,
    is_replacing: bool,
    reapply: Callable[[Project], Iterable[str]],
    say: Callable[[str], None],
    is_dry_run: bool = False,
) -> Restored | Refusal:
    """Put a backup into a project.

    Args:
        project: Where; its ledger is closed and opened again.
        source: The file.
        passphrase: Opens it.
        is_replacing: Whether a project that has a history of its own may lose it.
        reapply: Takes out again who withdrew; told the restored project.
        say: Prints one line of progress.
        is_dry_run: Open and examine only.

    Raises:
        ProjectError: Another passphrase, a changed or cut off file, a file of a newer mlops, or one with paths that
            lead out of it.
        LedgerError: The ledger in it is damaged or of a newer mlops.
        EnvironmentFault: The disk is full.
    """
    state = project.places.state
    refusal = None if is_dry_run else _find_obstacle(project, is_replacing=is_replacing)
    if refusal is not None:
        return refusal
    scratch = state / f".restore-{os.getpid()}"
    for old in state.glob(".restore-*"):
        shutil.rmtree(old, ignore_errors=True)
    scratch.mkdir(parents=True, mode=0o700)
    try:
        say(f"opening {source.name}")
        files = _extract(source, scratch, passphrase)
        index = _examine(scratch, source)
        verify_snapshot(scratch / LEDGER, clock=project.clock)
        if is_dry_run:
            return Restored(index["made_at"], files, 0, ())
        return _carry_out(project, scratch, index, files=files, reapply=reapply, say=say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_obstacle(project: Project, *, is_replacing: bool) -> Refusal | None:
    reasons = [
        Reason("still-serving", f"{instance.name} runs here; `mlops deploy stop` first")
        for runtime in list_runtimes(project.places.serving_state)
        for instance in runtime.list_instances()
    ]
    is_begun = project.places.restore_marker.exists()
    if not is_replacing and not is_begun:
        history = _describe_history(project)
        if history:
            reasons.append(Reason("not-empty", f"{history}; use --replace to give it up for the backup's"))
    return Refusal(tuple(reasons)) if reasons else None


def _describe_history(project: Project) -> str:
    """What would be given up; empty for a project in which nothing happened yet."""
    try:
        with project.ledger.read() as connection:
            head = find_head(connection)
    except LedgerError as error:
        return f"this project's ledger cannot be read ({error.message})"
    return f"this project has a history of its own, its last event at {render_time(head.at_us)}" if head.number else ""


def _extract(source: Path, scratch: Path, passphrase: str) -> int:
    """Open every chunk to the last, so that all of it is known to be there before anything is used."""
    count = 0
    try:
        with source.open("rb") as stream:
            opened = OpeningReader(stream, passphrase, name=source.name)
            with zstandard.ZstdDecompressor().stream_reader(opened) as unpacked:  # type: ignore[arg-type]
                with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                    for member in archive:
                        _write_member(archive, member, scratch, source.name)
                        count += 1
                unpacked.read()
            opened.read()
    except _FAULTS as error:
        raise ProjectError(f"{source.name} holds no whole archive: {error}", hint="take another backup") from error
    except FileNotFoundError as error:
        raise ProjectError(f"{source} does not exist") from error
    except OSError as error:
        raise EnvironmentFault(f"{source} cannot be read or written out: {error.strerror or error}") from error
    return count


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, scratch: Path, name: str) -> None:
    path = PurePosixPath(member.name)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
    is_known = member.name in _SINGLE or any(member.name.startswith(f"{tree}/") for tree in _TREES)
    if not (is_inside and is_known and member.isreg()):
        raise ProjectError(
            f"{name} holds {member.name!r}, which is no file of a backup: nothing was restored",
            hint="somebody who knows the passphrase made it by hand; take another copy",
        )
    target = scratch / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    stream = archive.extractfile(member)
    assert stream is not None  # a regular file
    with target.open("xb") as output:
        shutil.copyfileobj(stream, output, 1 << 20)
    target.chmod(0o600 if path.parts[0] == "keys" else member.mode & 0o755 | 0o600)
    os.utime(target, (member.mtime, member.mtime))  # of two gate results the later one counts


def _examine(scratch: Path, source: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((scratch / INDEX).read_bytes())
        if int(index["format"]) > FORMAT:
            raise ProjectError(
                f"{source.name} was written by mlops {index['mlops']}, this one is older", hint="use the newer mlops"
            )
        str(index["made_at"]), str(index["state"]), dict(index["tombstones"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProjectError(f"{source.name} does not say what it holds: {error}", hint="take another backup") from error
    if not (scratch / LEDGER).is_file():
        raise LedgerError(f"{source.name} holds no ledger", hint="take another backup")
    return index


def _carry_out(
    project: Project,
    scratch: Path,
    index: dict[str, Any],
    *,
    files: int,
    reapply: Callable[[Project], Iterable[str]],
    say: Callable[[str], None],
) -> Restored:
    """Everything from here on can be done again after a kill, by the same command."""
    places = project.places
    say("keeping what the project knows of withdrawals")
    pending = scratch / "tombstones"
    withdrawals = restore_withdrawals(places, index["tombstones"], pending if pending.is_dir() else None)
    try:
        carry_over(project.ledger, scratch / LEDGER, prefix=_CARRIED, clock=project.clock)
        project.ledger.close()
    except LedgerError as error:
        say(f"the project's own ledger tells nothing any more: {error.message}")
    write_atomically(places.restore_marker, json.dumps({"made_at": index["made_at"]}))
    say("moving files into place")
    _move_folders(project, scratch, index)
    replace_ledger(project.ledger_url, scratch / LEDGER, clock=project.clock)
    restored = Project(places, project.clock, project.ids, project.ledger_url)
    _end_serving(restored, index)
    say("taking out again who withdrew")
    lines = tuple(reapply(restored))
    places.restore_marker.unlink(missing_ok=True)
    restored.ledger.close()
    return Restored(index["made_at"], files, withdrawals, lines)


def _move_folders(project: Project, scratch: Path, index: dict[str, Any]) -> None:
    places = project.places
    if (scratch / MLFLOW).is_file() and is_in_backup(places):
        relocate_mlflow(scratch / MLFLOW, old=Path(index["state"]), new=places.state.resolve())
        for suffix in ("", "-wal", "-shm"):
            (places.state / f"{MLFLOW}{suffix}").unlink(missing_ok=True)
        (places.state / MLFLOW).parent.mkdir(parents=True, exist_ok=True)
        (scratch / MLFLOW).replace(places.state / MLFLOW)
    for name in (*FOLDERS, "checkpoints"):
        if name == "tombstones":
            continue  # joined before
        if name == "certificates":
            _join(scratch / name, places.state / name)
            continue
        remove_tree(places.state / name)
        if (scratch / name).is_dir():
            (places.state / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).replace(places.state / name)
    if places.keys_folder.is_dir():
        places.keys_folder.chmod(0o700)
    _restore_objects(project, scratch / OBJECTS)


def _join(source: Path, target: Path) -> None:
    """Add what is missing; what the project has is newer."""
    for path in source.glob("*") if source.is_dir() else ():
        if not (target / path.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            path.replace(target / path.name)


def _restore_objects(project: Project, folder: Path) -> None:
    """Manifests and schemas go into the cache, where they are missing."""
    try:
        cache = load_locations(project.places).object_urls[0]
    except MlopsError:
        return  # the clone has no data configured: there is nothing to ask them about
    for path in folder.glob("*") if folder.is_dir() else ():
        target = Path(object_path(cache, path.name))
        if not target.exists():
            write_atomically(target, path.read_bytes(), mode=0o444)


def _end_serving(project: Project, index: dict[str, Any]) -> None:
    """Nothing of what the backup saw serving runs now; where git has a newer state, a promotion begins it again."""
    with project.ledger.write() as transaction:
        for row in load_deployments(transaction.connection, is_current=True):
            end_deployment(transaction, row, outcome=GOOD, why="restored from a backup")
        transaction.append("ledger.restored", "ledger", {"made_at": index["made_at"]})
        for environment in list_environments(transaction.connection):
            desired = load_desired(transaction.connection, environment)
            if desired is not None:
                write_atomically(desired_file(project.places, environment), desired.content)
