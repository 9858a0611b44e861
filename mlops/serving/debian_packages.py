"""Debian packages for the base layer: locked by digest, fetched without root by apt with lists of its own.

apt checks the archive's signature; the lock fixes the bytes. A locked package that the mirror dropped is replaced by
apt's signed current one, which is said and recorded.
Leaves to others: which files of a package go into the image (layers.py).
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import zstandard

from mlops.errors import EnvironmentFault, ServingError
from mlops.provenance.digest import digest_file
from mlops.serving.content_store import ContentStore

_APT_SECONDS = 300


@dataclass(frozen=True)
class DebianPackage:
    """One locked package."""

    name: str
    version: str
    digest: str
    """`sha256:…` of the .deb."""


@dataclass(frozen=True)
class DebianLock:
    """What the base layer is made of."""

    suite: str
    """Code name of the release: `bookworm`."""
    architecture: str
    packages: tuple[DebianPackage, ...]


@dataclass(frozen=True)
class FetchedPackages:
    """The packages as they lie in the store."""

    packages: tuple[DebianPackage, ...]
    notes: tuple[str, ...]
    """One line for each that is not the locked one."""


def load_debian_lock() -> DebianLock:
    """The lock that ships with `mlops`."""
    text = resources.files("mlops.serving").joinpath("locks", "debian-bookworm-amd64.json").read_text("utf-8")
    return parse_debian_lock(text)


def parse_debian_lock(text: str) -> DebianLock:
    """Text of a lock file to its value."""
    content = json.loads(text)
    packages = tuple(
        DebianPackage(name=item["name"], version=item["version"], digest=item["digest"]) for item in content["packages"]
    )
    return DebianLock(suite=content["suite"], architecture=content["architecture"], packages=packages)


def render_debian_lock(lock: DebianLock) -> str:
    """The lock as a file."""
    packages = [{"name": item.name, "version": item.version, "digest": item.digest} for item in lock.packages]
    content = {"version": 1, "suite": lock.suite, "architecture": lock.architecture, "packages": packages}
    return json.dumps(content, indent=1) + "\n"


def fetch_debian_packages(
    lock: DebianLock, *, store: ContentStore, cache: Path, say: Callable[[str], None]
) -> FetchedPackages:
    """Every package of the lock, from the store or else from apt.

    Raises:
        EnvironmentFault: apt is absent, serves another release, or the mirror does not answer.
    """
    missing = [package for package in lock.packages if not store.has(package.digest)]
    if not missing:
        return FetchedPackages(packages=lock.packages, notes=())
    apt = _Apt(folder=cache / "serving" / "apt", lock=lock)
    replaced = apt.read_replacements(store)
    missing = [package for package in missing if package.name not in replaced]
    if missing:
        say(f"fetching {len(missing)} Debian packages ({lock.suite}, {lock.architecture})")
        apt.update()
        missing = apt.download_locked(tuple(missing), store)
        replaced |= {package.name: got for package in missing if (got := apt.download(package, store)) != package}
        apt.write_replacements(replaced)
    packages = tuple(replaced.get(package.name, package) for package in lock.packages)
    notes = tuple(
        f"{package.name} {package.version} is gone from the mirror: took the current {replaced[package.name].version}"
        for package in lock.packages
        if package.name in replaced
    )
    return FetchedPackages(packages=packages, notes=notes)


def lock_current_packages(
    names: tuple[str, ...], *, suite: str, architecture: str, store: ContentStore, cache: Path
) -> DebianLock:
    """A new lock of what apt serves today; the files go into the store.

    Raises:
        EnvironmentFault: as `fetch_debian_packages`.
    """
    lock = DebianLock(suite=suite, architecture=architecture, packages=())
    apt = _Apt(folder=cache / "serving" / "apt", lock=lock)
    apt.update()
    packages = [apt.download(DebianPackage(name=name, version="", digest=""), store) for name in sorted(names)]
    return DebianLock(suite=suite, architecture=architecture, packages=tuple(packages))


@dataclass(frozen=True)
class _Apt:
    """apt with its own lists and cache; the machine's sources and keys are used as they are."""

    folder: Path
    lock: DebianLock

    def update(self) -> None:
        if shutil.which("apt-get") is None:
            raise EnvironmentFault(
                "the serving image's base layer is missing and this machine has no apt to fetch it",
                hint="set `base: registry/repository@sha256:…` in deploy/<product>.yaml, or copy .mlops/store here",
            )
        for name in ("lists/partial", "archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "update", "-q")
        found = self._run("apt-cache", "policy", "base-files")
        if f"n={self.lock.suite}" not in found and f"{self.lock.suite}/main" not in found:
            raise EnvironmentFault(
                f"apt on this machine does not serve Debian {self.lock.suite}, which the image's Python needs",
                hint="build on that release, add its sources, or set `base: registry/repository@sha256:…`",
            )

    def download_locked(self, packages: tuple[DebianPackage, ...], store: ContentStore) -> list[DebianPackage]:
        """Those that apt has as locked, in one call; returns what is left to be fetched one by one."""
        by_digest = {package.digest: package for package in packages}
        with tempfile.TemporaryDirectory(prefix="deb-") as scratch:
            names = [f"{package.name}={package.version}" for package in packages]
            self._run("apt-get", "download", "-q", *names, at=Path(scratch), is_needed=False)
            for file in Path(scratch).glob("*.deb"):
                if (digest := digest_file(file)) in by_digest:
                    store.adopt(file, digest=digest)
                    by_digest.pop(digest)
        return list(by_digest.values())

    def download(self, package: DebianPackage, store: ContentStore) -> DebianPackage:
        """The locked package if the mirror still has it, else the current one."""
        with tempfile.TemporaryDirectory(prefix="deb-") as scratch:
            folder = Path(scratch)
            if package.version:
                self._run("apt-get", "download", "-q", f"{package.name}={package.version}", at=folder, is_needed=False)
                for file in folder.glob("*.deb"):
                    if digest_file(file) == package.digest:
                        store.adopt(file, digest=package.digest)
                        return package
                    file.unlink()
            self._run("apt-get", "download", "-q", package.name, at=folder)
            found = next(folder.glob("*.deb"), None)
            if found is None:
                raise EnvironmentFault(f"apt offers no package {package.name}", hint="check the sources of apt")
            digest = digest_file(found)
            store.adopt(found, digest=digest)
            fields = parse_control(DebFile(store.path(digest)).control())
            return DebianPackage(name=package.name, version=fields["Version"], digest=digest)

    def read_replacements(self, store: ContentStore) -> dict[str, DebianPackage]:
        """What an earlier build had to take instead, if it is still stored."""
        path = self.folder / f"replaced-{self.lock.suite}-{self.lock.architecture}.json"
        if not path.is_file():
            return {}
        found = parse_debian_lock(path.read_text("utf-8"))
        return {package.name: package for package in found.packages if store.has(package.digest)}

    def write_replacements(self, replaced: dict[str, DebianPackage]) -> None:
        path = self.folder / f"replaced-{self.lock.suite}-{self.lock.architecture}.json"
        packages = tuple(replaced[name] for name in sorted(replaced))
        lock = DebianLock(suite=self.lock.suite, architecture=self.lock.architecture, packages=packages)
        path.write_text(render_debian_lock(lock), encoding="utf-8")

    def _run(self, *command: str, at: Path | None = None, is_needed: bool = True) -> str:
        options = (
            f"Dir::State::lists={self.folder}/lists",
            f"Dir::State={self.folder}",
            f"Dir::Cache={self.folder}",
            "Dir::State::status=/dev/null",
            f"APT::Architecture={self.lock.architecture}",
            "APT::Sandbox::User=",
            "Debug::NoLocking=1",
        )
        flags = [part for option in options for part in ("-o", option)]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(
                [command[0], *flags, *command[1:]],
                cwd=at or self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_APT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(f"{' '.join(command)} gave no answer in {_APT_SECONDS} s") from error
        if done.returncode and is_needed:
            raise EnvironmentFault(
                f"{' '.join(command)} failed", items=tuple(done.stderr.splitlines()[-5:]), hint="check apt's sources"
            )
        return done.stdout


@dataclass(frozen=True)
class DebFile:
    """A .deb, read without dpkg: an `ar` of two tars."""

    path: Path

    def control(self) -> bytes:
        """Its control file."""
        for tar, member in self._members("control.tar"):
            if member.name.removeprefix("./") == "control":
                content = tar.extractfile(member)
                assert content is not None
                return content.read()
        raise ServingError(f"{self.path} has no control file")

    def files(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        """Its entries in order, with the tar to read content from."""
        return self._members("data.tar")

    def _members(self, prefix: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        for name, content in self._parts():
            if name.startswith(prefix):
                with tarfile.open(fileobj=BytesIO(_decompress(name, content))) as tar:
                    for member in tar:
                        yield tar, member
                return
        raise ServingError(f"{self.path} holds no {prefix}: not a Debian package")

    def _parts(self) -> Iterator[tuple[str, bytes]]:
        blob = self.path.read_bytes()
        if not blob.startswith(b"!<arch>\n"):
            raise ServingError(f"{self.path} is not a Debian package")
        at = 8
        while at + 60 <= len(blob):
            header = blob[at : at + 60]
            size = int(header[48:58])
            yield header[:16].decode("ascii").strip().rstrip("/"), blob[at + 60 : at + 60 + size]
            at += 60 + size + size % 2


def parse_control(content: bytes) -> dict[str, str]:
    """Fields of a control file; continuation lines are joined."""
    fields: dict[str, Any] = {}
    last = ""
    for line in content.decode("utf-8").splitlines():
        if line[:1] in (" ", "\t"):
            fields[last] += "\n" + line.strip()
        elif ":" in line:
            last, value = line.split(":", 1)
            fields[last] = value.strip()
    return fields


def _decompress(name: str, content: bytes) -> bytes:
    if name.endswith(".xz"):
        return lzma.decompress(content)
    if name.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return content  # tarfile reads gzip and plain by itself
