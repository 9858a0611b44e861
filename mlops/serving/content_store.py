"""Downloaded files, kept by digest: what was fetched once can be used for ever, whatever the mirrors drop.

Leaves to others: where files come from (debian_packages.py, python_wheels.py).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import EnvironmentFault, ServingError
from mlops.provenance.digest import digest_file, hex_of


@dataclass(frozen=True)
class ContentStore:
    """`<folder>/sha256/<hex>`, one file each."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where the content lies, or would lie."""
        return self.folder / "sha256" / hex_of(digest)

    def has(self, digest: str) -> bool:
        """Whether it was stored; its content is checked when it is used."""
        return self.path(digest).is_file()

    def verify(self, digest: str) -> Path:
        """The stored file, re-hashed.

        Raises:
            ServingError: It is absent, or changed on disk.
        """
        path = self.path(digest)
        if not path.is_file():
            raise ServingError(f"{digest} is not in {self.folder}", hint="build once with the package mirror in reach")
        if digest_file(path) != digest:
            raise ServingError(f"{path} does not match its name", hint="delete the file and build again")
        return path

    def adopt(self, file: Path, *, digest: str) -> Path:
        """Move a downloaded file in.

        Raises:
            ServingError: Its content is not `digest`.
            EnvironmentFault: The disk is full.
        """
        found = digest_file(file)
        if found != digest:
            raise ServingError(f"{file.name} has digest {found}, not {digest}: refused")
        target = self.path(digest)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, aside)
            aside.replace(target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise EnvironmentFault(f"cannot store {file.name}: {error.strerror}", hint="free disk space") from error
        return target
