"""Reading one object by digest from the nearest store that has it unchanged; documented DVC layout, no DVC import.

Leaves to others: which objects (version.py) and writing them (dvc_store.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from mlops.errors import DatasetError


def read_object(urls: tuple[str, ...], md5: str, *, what: str, sha256: str | None = None) -> bytes:
    """The bytes of an object, verified.

    Args:
        urls: Stores, nearest first (`Locations.object_urls`).
        md5: 32 hex digits, or `<md5>.dir`.
        what: Name of the object in messages.
        sha256: 64 hex digits; where known it is verified as well.

    Raises:
        DatasetError: No store has it, or every store's copy has other bytes.
    """
    changed: list[str] = []
    unreachable: list[str] = []
    for content, place in _find_copies(urls, md5, unreachable=unreachable):
        if _has_digests(content, md5=md5.removesuffix(".dir"), sha256=sha256):
            return content
        changed.append(f"{place}: {len(content)} bytes that are not md5 {md5}")
    if changed:
        raise DatasetError(
            f"{what} changed where it is stored",
            items=(*changed, *unreachable),
            hint="delete the changed copies and run `mlops dataset import` again, or fetch them from a good remote",
        )
    if unreachable:
        raise DatasetError(f"{what} cannot be read", items=tuple(unreachable), hint="is the remote reachable?")
    raise DatasetError(
        f"{what} (md5 {md5}) is in no store",
        items=tuple(urls),
        hint="run `mlops dataset import NAME`, or `dvc fetch` from a remote that has it",
    )


def verify_file(path: Path, *, md5: str | None, size: int | None) -> str:
    """What is wrong with a file on this machine, or nothing.

    Args:
        path: The file.
        md5: What its bytes must hash to (`<md5>.dir` too); None skips hashing.
        size: What its size must be; None skips it.
    """
    try:
        if size is not None and path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        if md5 is not None:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != md5.removesuffix(".dir"):
                return f"{path} has md5 {found} instead of {md5}"
        return "" if path.is_file() else f"{path} is missing"
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"


def object_path(url: str, md5: str) -> str:
    """Where an object lies in a store."""
    return f"{url}/{md5[:2]}/{md5[2:]}"


def is_local(url: str) -> bool:
    """Whether a store is a folder on this machine."""
    return urlparse(url).scheme in ("", "file")


def _find_copies(urls: tuple[str, ...], md5: str, *, unreachable: list[str]) -> Iterator[tuple[bytes, str]]:
    """Copies of an object, store by store; a store that cannot be asked is noted and passed over."""
    for url in urls:
        place = object_path(url, md5)
        try:
            if is_local(url):
                yield Path(place).read_bytes(), place
            else:
                yield _read_remote(place), place
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreachable.append(f"{place}: {error}")


def _read_remote(place: str) -> bytes:
    """The bytes at an address.

    Raises:
        FileNotFoundError: The store says that it has none.
        OSError: Whatever else the client of a remote raises: a server's fault, an answer that is cut off, a time-out.
    """
    import fsspec  # type: ignore[import-untyped]  # only where a remote is not a folder

    try:
        filesystem, path = fsspec.core.url_to_fs(place)
        content: bytes = filesystem.cat_file(path)  # `open` says of an HTTP 500 that the file does not exist
        return content
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _has_digests(content: bytes, *, md5: str, sha256: str | None) -> bool:
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        return False
    return sha256 is None or hashlib.sha256(content).hexdigest() == sha256
