"""An image's layers become a folder, as a container runtime would see them.

Leaves to others: starting what is in it (runtimes).
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import zstandard

from mlops.errors import EnvironmentFault, ServingError
from mlops.serving.oci_layout import ImageLayout, verify_blob

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MOST_LINKS = 40


def unpack_image(layout: Path, digest: str, target: Path) -> None:
    """Write the root file system of an image to the new folder `target`; every blob is checked against its digest.

    Owners are those of the caller; devices are left out; setuid and setgid bits are dropped.

    Raises:
        ServingError: A blob is missing or corrupt, or an entry would leave `target`.
        EnvironmentFault: The disk is full.
    """
    store = ImageLayout(layout)
    manifest = store.read_manifest(digest)
    try:
        target.mkdir(parents=True)
        for layer in manifest["layers"]:
            verify_blob(store, layer["digest"])
            with open_layer(store.blob_path(layer["digest"]), media_type=layer["mediaType"]) as stream:
                _apply_layer(stream, target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise EnvironmentFault(f"cannot unpack {digest} to {target}: {error}", hint="free disk space") from error
    except ServingError:
        shutil.rmtree(target, ignore_errors=True)
        raise


@contextmanager
def open_layer(path: Path, *, media_type: str) -> Iterator[IO[bytes]]:
    """The tar inside a layer blob.

    Raises:
        ServingError: The layer is of an unknown kind or its compression is corrupt.
    """
    with path.open("rb") as raw:
        try:
            if media_type.endswith("+zstd"):
                yield cast(IO[bytes], zstandard.ZstdDecompressor().stream_reader(raw, closefd=False))
            elif media_type.endswith(("+gzip", ".tar.gzip")):
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(IO[bytes], stream)
            elif media_type.endswith(".tar"):
                yield raw
            else:
                raise ServingError(f"layer {path.name} is of the unknown kind {media_type}")
        except (zstandard.ZstdError, gzip.BadGzipFile, tarfile.TarError, EOFError) as error:
            raise ServingError(f"layer {path.name} is corrupt: {error}") from error


def digest_of_tar(path: Path, *, media_type: str) -> str:
    """`sha256:…` of the uncompressed layer: its diff id."""
    found = hashlib.sha256()
    with open_layer(path, media_type=media_type) as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"


def layer_members(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Entries of a layer in order, with the tar to read their content from."""
    with tarfile.open(fileobj=cast(Any, stream), mode="r|") as tar:
        for member in tar:
            yield tar, member


def _apply_layer(stream: IO[bytes], target: Path) -> None:
    for tar, member in layer_members(stream):
        name = _safe_name(member.name)
        if name == PurePosixPath("."):
            continue
        path = _place(target, name)
        if name.name == _OPAQUE:
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        elif name.name.startswith(_WHITEOUT):
            _remove(path.with_name(name.name.removeprefix(_WHITEOUT)))
        else:
            _write_member(tar, member, path=path, target=target)


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, *, path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        if path.is_symlink() or path.is_file():
            path.unlink()
        path.mkdir(exist_ok=True)
        path.chmod(member.mode & 0o1777 | 0o700)
        return
    _remove(path)
    if member.isreg():
        content = tar.extractfile(member)
        assert content is not None
        with path.open("wb") as output:
            shutil.copyfileobj(content, output, 1 << 20)
        path.chmod(member.mode & 0o777)
    elif member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        source = _place(target, _safe_name(member.linkname))
        if not source.is_file() or source.is_symlink():
            raise ServingError(f"layer entry {member.name!r} is a hard link to what is not a file")
        path.hardlink_to(source)


def _safe_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts:
        raise ServingError(f"layer entry {name!r} would leave the image")
    return path


def _place(target: Path, name: PurePosixPath) -> Path:
    """The path below `target`; links among its parents are followed as the image would see them.

    An absolute link starts at the image's root, and `..` stops there, so that nothing leads outside.
    """
    parent = target
    steps = list(reversed(name.parts[:-1]))
    followed = 0
    while steps:
        step = steps.pop()
        if step == "..":
            parent = parent.parent if parent != target else parent
            continue
        inner = parent / step
        if inner.is_symlink():
            followed += 1
            if followed > _MOST_LINKS:
                raise ServingError(f"layer entry {str(name)!r} would leave the image: its links go in circles")
            goal = PurePosixPath(inner.readlink())
            parent = target if goal.is_absolute() else parent
            steps.extend(reversed([part for part in goal.parts if part != "/"]))
        else:
            parent = inner
    return parent / name.name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
