"""The one door to DVC: objects into its cache and remotes, verified there, and removed from everywhere.

Uses `dvc.config`, `dvc.fs` and `dvc_data.hashfile.db`, which are not public API: dvc is pinned, and
tests/contracts/datasets/ says what we rely on. Leaves to others: `datasets.dvc` (pins.py) and reading (objects.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.datasets.locations import load_locations
from mlops.datasets.objects import verify_file
from mlops.errors import DatasetError
from mlops.places import Places


@dataclass(frozen=True)
class Removal:
    """What became of one object's removal."""

    removed_from: tuple[str, ...]
    """Stores that had it."""
    failures: tuple[str, ...]
    """Stores that have it still or cannot be reached, with the cause; empty when it is gone everywhere."""


class DvcStore:
    """Cache and remotes of one project.

    Raises:
        DatasetError: `.dvc/config` is missing, wrong, or names no remote.
    """

    def __init__(self, places: Places) -> None:
        from dvc.config import Config, ConfigError  # 0.2 s, and only writers need it
        from dvc.fs import LocalFileSystem, get_cloud_fs
        from dvc_data.hashfile.db import get_odb

        locations = load_locations(places)
        site = places.cache / "dvc-site"
        try:
            config = Config(str(places.root / ".dvc"), config={"core": {"site_cache_dir": str(site)}})
            self.cache: Any = get_odb(LocalFileSystem(), f"{locations.cache}/files/md5", tmp_dir=str(site))
            self.remotes: dict[str, Any] = {}
            for name, _ in locations.remotes:
                kind, options, path = get_cloud_fs(config, name=name)
                filesystem = kind(**options)
                self.remotes[name] = get_odb(filesystem, filesystem.join(path, "files", "md5"), tmp_dir=str(site))
        except ConfigError as error:
            raise DatasetError(f"{places.root}/.dvc/config: {error}", hint="fix it, see docs/data.md") from error
        except ImportError as error:  # dvc-s3, dvc-gs, …: packages of their own
            raise DatasetError(
                f"{places.root}/.dvc/config: the remote {name} cannot be used: {error}",
                hint="install that package beside mlops",
            ) from error

    def add(self, files: Mapping[str, Path]) -> None:
        """Copy files into the cache, unless they are there.

        Args:
            files: Object name (md5, or `<md5>.dir`) to the file with its bytes.

        Raises:
            DatasetError: The cache cannot be written.
        """
        self._transfer(self.cache, [str(path) for path in files.values()], list(files), where="the cache")

    def give(self, files: Mapping[str, Path]) -> None:
        """As `add`, for scratch files that nobody needs afterwards: where the disk can, no byte is copied.

        Raises:
            DatasetError: The cache cannot be written.
        """
        self._transfer(self.cache, [str(path) for path in files.values()], list(files), where="the cache", link=True)

    def push(self, objects: Sequence[str], *, directory: str) -> None:
        """Copy objects from the cache to every remote, the `.dir` last, and check that each arrived whole.

        A push that DVC ends with exit code 0 may have left members behind; here that is an error.

        Raises:
            DatasetError: A remote cannot be written, or misses an object afterwards.
        """
        for name, remote in self.remotes.items():
            where = f"remote {name} ({remote.path})"
            for batch in ([*objects], [directory]):
                self._transfer(remote, [self.cache.oid_to_path(oid) for oid in batch], batch, where=where)
            missing = self.find_missing(remote, [*objects, directory])
            if missing:
                raise DatasetError(
                    f"{where} misses {len(missing)} objects after the push",
                    items=tuple(missing[:10]),
                    hint="run the import again; nothing was pinned",
                )

    def require(self, directory: str) -> None:
        """Refuse to build on a version that a remote lacks: its `.dir` is the proof that all members arrived.

        Raises:
            DatasetError: A remote does not have it.
        """
        for name, remote in self.remotes.items():
            if not remote.exists(directory):
                raise DatasetError(
                    f"remote {name} ({remote.path}) does not hold {directory}, so a change could not be built on it",
                    hint="run `mlops dataset import NAME` or `dvc push` first",
                )

    def find_missing(self, store: Any, objects: Sequence[str]) -> list[str]:
        """Objects that a store lacks, or holds with another size than the cache."""
        missing = []
        for oid in objects:
            try:
                size = store.fs.size(store.oid_to_path(oid))
            except FileNotFoundError:
                size = None
            if size is None or size != Path(self.cache.oid_to_path(oid)).stat().st_size:
                missing.append(oid)
        return missing

    def delete(self, oid: str, *, witness: str) -> Removal:
        """Remove one object from the cache and every remote; one that is down does not save the others.

        Args:
            oid: Name of the object.
            witness: An object that every remote must have (the pinned `.dir`): a remote without it is not there at
                all, an unmounted folder for instance, and says nothing about what it holds.
        """
        had: list[str] = []
        failures: list[str] = []
        for name, store in {"cache": self.cache, **self.remotes}.items():
            try:
                if store.exists(oid):
                    store.delete(oid)
                    had.append(name)
                if store.exists(oid):
                    failures.append(f"{name} ({store.path}) still has it")
                elif name != "cache" and not store.exists(witness):
                    failures.append(f"remote {name} ({store.path}) cannot be reached: it lacks the pinned version too")
            except Exception as error:  # whatever the client of a remote raises
                failures.append(f"{name} ({store.path}) cannot be reached: {error}")
        self._forget_indexes()
        return Removal(tuple(had), tuple(failures))

    def _forget_indexes(self) -> None:
        """DVC remembers what a remote has; after a removal that memory would be wrong."""
        from dvc_data.hashfile.db import get_index

        for remote in self.remotes.values():
            get_index(remote).clear()

    def _transfer(self, store: Any, paths: list[str], oids: list[str], *, where: str, link: bool = False) -> None:
        from dvc.exceptions import DvcException

        failures: dict[str, BaseException] = {}
        try:
            sizes = {oid: Path(path).stat().st_size for oid, path in zip(oids, paths, strict=True)}
            changed = [oid for oid in oids if store.exists(oid) and not _is_whole(store, oid, size=sizes[oid])]
            for oid in changed:  # a half-uploaded object blocks its own repair: exists() is true
                store.delete(oid)
            store.add(paths, self.cache.fs, oids, hardlink=link, on_error=failures.__setitem__)
        except (OSError, DvcException) as error:
            raise DatasetError(
                f"cannot write to {where}: {error}", hint="is it there, reachable and writable?"
            ) from error
        if failures:
            raise DatasetError(
                f"cannot write {len(failures)} objects to {where}",
                items=tuple(f"{oid}: {error}" for oid, error in list(failures.items())[:10]),
                hint="is it reachable, with space and rights? then run the import again; nothing was pinned",
            )


def _is_whole(store: Any, oid: str, *, size: int) -> bool:
    """Whether a store's copy is good: by digest on this machine, by size elsewhere.

    DVC's own check trusts any local object of mode 0444 without hashing it.
    """
    path = store.oid_to_path(oid)
    if store.fs.protocol == "local":
        return not verify_file(Path(path), md5=oid, size=size)
    return bool(store.fs.size(path) == size)
