"""A backup: one sealed file with ledger, MLflow, images, models, evidence, keys, withdrawals and the pins of the data.

Databases are copied as they are at one moment while others go on writing. Rows are not in it: they lie in DVC remotes,
and the backup names what to fetch. Leaves to others: sealing (sealing.py), putting it back (restore.py).
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from mlops import __version__
from mlops.clock import render_time
from mlops.datasets.history import list_versions
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import read_object
from mlops.datasets.parts import list_pinned, split_digest
from mlops.datasets.pins import parse_directory
from mlops.errors import EnvironmentFault, MlopsError
from mlops.files import sync_folder
from mlops.ledger.copying import snapshot_ledger
from mlops.overview.sealing import SealingWriter
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.sql_steps import find_steps
from mlops.registry.mlflow_backup import is_in_backup, snapshot_mlflow
from mlops.serving.oci_layout import ImageLayout

FORMAT = 1
INDEX = "backup.json"
LEDGER = "ledger.sqlite"
MLFLOW = "mlflow/mlflow.sqlite"
FOLDERS = (
    "mlflow/artifacts",
    "mlflow/spool",
    "candidates",
    "evidence",
    "attestations",
    "keys",
    "tombstones",
    "certificates",
    "images",
)
"""Below `.mlops/`; images are named last, so that whoever reads their index finds all blobs."""
OBJECTS = "dvc-objects"
"""Manifests and schemas of dataset versions, which hold no rows: they tell whom an old model was trained on."""


@dataclass(frozen=True)
class Backup:
    """What was written."""

    path: Path
    bytes: int
    files: int
    notes: tuple[str, ...]
    """What is not in it, and where it lies."""


def write_backup(project: Project, target: Path, *, passphrase: str, say: Callable[[str], None]) -> Backup:
    """Write a backup; `target` appears whole or not at all.

    Raises:
        ProjectError: The passphrase is too short.
        EnvironmentFault: The disk is full, or the file cannot be written.
        LedgerError: The ledger cannot be read.
    """
    aside = target.with_name(f".{target.name}.part")
    try:
        project.places.state.mkdir(parents=True, exist_ok=True)
        aside.touch(mode=0o600)
        aside.chmod(0o600)
        with aside.open("wb") as stream, tempfile.TemporaryDirectory(dir=project.places.state) as scratch:
            sealed = SealingWriter(stream, passphrase)
            packer = zstandard.ZstdCompressor(level=3).stream_writer(sealed, closefd=False)  # type: ignore[arg-type]
            with tarfile.open(fileobj=packer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                files, notes = _fill(project, archive, Path(scratch), say)
            packer.close()  # type: ignore[no-untyped-call]
            sealed.close()
            stream.flush()
        aside.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {target}: {error.strerror or error}",
            hint="is the folder there and writable, and is there space?",
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return Backup(target, target.stat().st_size, files, tuple(notes))


def plan_backup(project: Project) -> tuple[tuple[str, int], ...]:
    """Part to bytes, for `--dry-run`."""
    places = project.places
    parts = [(LEDGER, places.ledger_file), (MLFLOW, places.mlflow_folder / "mlflow.sqlite")]
    sizes = [(name, path.stat().st_size) for name, path in parts if path.is_file()]
    for folder in FOLDERS:
        sizes.append((folder, sum(path.stat().st_size for path in _list_folder(places.state / folder))))
    return tuple((name, size) for name, size in sizes if size)


def _fill(
    project: Project, archive: tarfile.TarFile, scratch: Path, say: Callable[[str], None]
) -> tuple[int, list[str]]:
    places, notes = project.places, []
    count = 0

    def add(name: str, path: Path) -> None:
        nonlocal count
        content = archive.gettarinfo(path, name)
        content.uid = content.gid = 0
        content.uname = content.gname = ""
        with path.open("rb") as stream:
            archive.addfile(content, stream)
        count += 1

    _add_bytes(archive, INDEX, json.dumps(_describe(project), sort_keys=True, indent=1).encode())
    say("ledger")
    snapshot_ledger(project.ledger, scratch / "ledger", clock=project.clock)
    add(LEDGER, scratch / "ledger")
    if not is_in_backup(places):
        notes.append("MLflow is a server of its own: back it up there")
    elif snapshot_mlflow(places, scratch / "mlflow"):
        add(MLFLOW, scratch / "mlflow")
    with ImageLayout(places.images).locked():
        for folder in FOLDERS:
            paths = list(_list_folder(places.state / folder))
            say(f"{folder}: {len(paths)} files")
            for path in paths:
                add(path.relative_to(places.state).as_posix(), path)
    for path in _winning_weights(project):
        add(path.relative_to(places.state).as_posix(), path)
    for name, content in _data_objects(places, notes):
        _add_bytes(archive, f"{OBJECTS}/{name}", content)
        count += 1
    return count, notes


def _describe(project: Project) -> dict[str, Any]:
    """`backup.json`: read first, and enough to refuse what cannot be restored."""
    places = project.places
    remotes: list[list[str]] = []
    pins: dict[str, str] = {}
    try:
        remotes = [list(remote) for remote in load_locations(places).remotes]
        pins = {name: places.datasets_dvc.read_text("utf-8") for name in list_pinned(places)[:1]}
        pins |= {path.name: path.read_text("utf-8") for path in sorted((places.root / "datasets").glob("*.dvc"))}
    except MlopsError:
        pass  # no dataset was imported yet
    return {
        "format": FORMAT,
        "mlops": __version__,
        "made_us": project.clock.now_us(),
        "made_at": render_time(project.clock.now_us()),
        "state": str(places.state.resolve()),
        "remotes": remotes,
        "pins": pins,
        "tombstones": {
            path.name: path.read_text("utf-8")
            for pattern in ("*.tombstones", "*.purged")
            for path in sorted((places.root / "datasets").glob(pattern))
        },
    }


def _list_folder(folder: Path) -> Iterator[Path]:
    """Files that count: no locks, nothing half-written; an image layout's index comes after its blobs."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in sorted(paths, key=lambda path: path.name == "index.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.suffix != ".lock":
            yield path


def _winning_weights(project: Project) -> Iterator[Path]:
    """What an export was made of, so that a release need not search again."""
    with project.ledger.read() as connection:
        files = {str(step.facts.get("weights_file", "")) for step in find_steps(connection, kind="sweep")}
    for name in sorted(files):
        path = project.places.root / name
        if name and path.is_file() and path.is_relative_to(project.places.checkpoints):
            yield path


def _data_objects(places: Places, notes: list[str]) -> Iterator[tuple[str, bytes]]:
    """`.dir`, manifest and schema of every known version."""
    try:
        urls = load_locations(places).object_urls
    except MlopsError:
        return
    found: dict[str, bytes] = {}
    for dataset in list_pinned(places):
        for version in list_versions(places, dataset):
            for part, digest in split_digest(dataset, version.dvc_digest):
                found[digest] = read_object(urls, digest, what=part.folder)
                members = parse_directory(found[digest], source=digest)
                for name in ("manifest.json", "dataset.yaml"):
                    found[members[name]] = read_object(urls, members[name], what=name)
    notes.append(
        "rows of datasets are not in it: they lie in " + ", ".join(url for _, url in load_locations(places).remotes)
    )
    yield from found.items()


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    archive.addfile(entry, io.BytesIO(content))
