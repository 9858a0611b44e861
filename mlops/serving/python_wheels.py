"""Wheels for the runtime layer: locked by digest, fetched by pip as files, unzipped and never installed.

Leaves to others: which files of a wheel are left out (layers.py).
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mlops.errors import EnvironmentFault, ServingError
from mlops.pip_download import pip_download
from mlops.provenance.digest import digest_file
from mlops.serving.content_store import ContentStore

_PIP_SECONDS = 900
_LINE = re.compile(r"([A-Za-z0-9._-]+)==(\S+) --hash=(sha256):([0-9a-f]{64})")
_PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux1_x86_64",
    "any",
)
"""What bookworm's glibc 2.36 can load; pip does not derive the older ones by itself."""


@dataclass(frozen=True)
class LockedWheel:
    """One wheel of the runtime layer."""

    name: str
    version: str
    digest: str
    """`sha256:…` of the file."""


def load_wheel_lock(name: str = "wheels-cp311-x86_64.txt") -> tuple[LockedWheel, ...]:
    """A lock that ships with `mlops`, in pip's requirements form so that scanners can read it."""
    return parse_wheel_lock(resources.files("mlops.serving").joinpath("locks", name).read_text("utf-8"))


def parse_wheel_lock(text: str) -> tuple[LockedWheel, ...]:
    """`name==version --hash=sha256:…` lines to values.

    Raises:
        ServingError: A line has another form.
    """
    wheels = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ServingError(f"wheel lock: {line!r} is not `name==version --hash=sha256:…`")
        wheels.append(LockedWheel(name=match[1], version=match[2], digest=f"sha256:{match[4]}"))
    return tuple(wheels)


def render_wheel_lock(wheels: tuple[LockedWheel, ...], *, title: str) -> str:
    """The lock as a file whose first line is `title`, a comment."""
    return f"{title}\n" + "".join(f"{wheel.name}=={wheel.version} --hash={wheel.digest}\n" for wheel in wheels)


def fetch_wheels(wheels: tuple[LockedWheel, ...], *, store: ContentStore, say: Callable[[str], None]) -> None:
    """Put every wheel that is missing into the store.

    Raises:
        EnvironmentFault: pip cannot get one, or gets other bytes than the locked ones.
    """
    missing = tuple(wheel for wheel in wheels if not store.has(wheel.digest))
    if not missing:
        return
    say(f"fetching {len(missing)} wheels")
    with tempfile.TemporaryDirectory(prefix="wheels-") as scratch:
        folder = Path(scratch)
        (folder / "lock.txt").write_text(render_wheel_lock(missing, title="# what is missing"), encoding="utf-8")
        _download(folder, "--require-hashes", "-r", "lock.txt")
        by_digest = {digest_file(file): file for file in folder.glob("*.whl")}
        for wheel in missing:
            if wheel.digest not in by_digest:
                raise EnvironmentFault(f"pip did not bring {wheel.name} {wheel.version}")
            store.adopt(by_digest[wheel.digest], digest=wheel.digest)


def lock_wheels(pins: tuple[str, ...], *, store: ContentStore) -> tuple[LockedWheel, ...]:
    """A new lock of `name==version` pins; the files go into the store.

    Raises:
        EnvironmentFault: pip cannot get one.
    """
    with tempfile.TemporaryDirectory(prefix="wheels-") as scratch:
        folder = Path(scratch)
        _download(folder, *pins)
        wheels = []
        for file in sorted(folder.glob("*.whl")):
            digest = digest_file(file)
            name, version = file.name.split("-")[:2]
            store.adopt(file, digest=digest)
            wheels.append(LockedWheel(name=name.lower().replace("_", "-"), version=version, digest=digest))
    return tuple(wheels)


def wheel_members(path: Path) -> list[tuple[zipfile.ZipInfo, str]]:
    """Entries of a wheel with the place each takes below `site-packages`.

    Raises:
        ServingError: Not a wheel, or a name that would leave the folder.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            found = [(entry, _install_name(entry.filename)) for entry in wheel.infolist() if not entry.is_dir()]
    except zipfile.BadZipFile as error:
        raise ServingError(f"{path} is not a wheel") from error
    for _, name in found:
        if name.startswith("/") or ".." in Path(name).parts:
            raise ServingError(f"{path}: {name!r} would leave site-packages")
    return [(entry, name) for entry, name in found if name]


def _install_name(name: str) -> str:
    """Where an entry of a wheel goes; scripts, headers and data files are not needed to serve."""
    head, _, rest = name.partition("/")
    if not head.endswith(".data"):
        return name
    scheme, _, inner = rest.partition("/")
    return inner if scheme in ("purelib", "platlib") else ""


def _download(folder: Path, *arguments: str) -> None:
    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    pip_download(
        *("--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"),
        *("--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *platforms,
        *arguments,
        what="the wheels of the runtime layer",
        folder=folder,
        timeout_seconds=_PIP_SECONDS,
    )
