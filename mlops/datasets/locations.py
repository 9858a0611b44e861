"""Where DVC objects of a project lie: its cache, then its remotes, as `.dvc/config` says.

Only the documented file format is read, so that readers need not import DVC. Leaves to others: objects themselves.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from mlops.errors import DatasetError
from mlops.places import Places

PEERS_VARIABLE = "MLOPS_DATA_PEERS"
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    remote = local
    site_cache_dir = .mlops/dvc-site
[cache]
    dir = ../.mlops/dvc-cache
['remote "local"']
    url = ../.mlops/dvc-remote
"""
"""`.dvc/config` of a new project: every path is relative and inside `.mlops/`."""
DVC_IGNORED = "/config.local\n/tmp\n/cache\n"
"""`.dvc/.gitignore`."""
DATASETS_IGNORED = "# Folders here are versioned by DVC (datasets.dvc).\n/*/\n"
"""`datasets/.gitignore`."""


@dataclass(frozen=True)
class Locations:
    """Stores of objects by name."""

    cache: str
    """Folder of the project's cache."""
    remotes: tuple[tuple[str, str], ...]
    """(name, folder or URL), the default one first."""

    @property
    def object_urls(self) -> tuple[str, ...]:
        """Where to look for an object, nearest first: it lies at `<url>/<2 hex>/<30 hex>`."""
        return tuple(f"{store.rstrip('/')}/files/md5" for store in (self.cache, *(url for _, url in self.remotes)))


def load_locations(places: Places) -> Locations:
    """The stores of a project.

    Raises:
        DatasetError: There is no `.dvc/config`, or it names no remote.
    """
    folder = places.root / ".dvc"
    if not (folder / "config").is_file():
        raise DatasetError(f"{folder}/config does not exist", hint="`mlops dataset import` writes it")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([folder / "config", folder / "config.local"], encoding="utf-8")
    except configparser.Error as error:
        raise DatasetError(f"{folder}/config cannot be read: {error}") from error
    remotes = {
        section.strip("'").removeprefix('remote "').removesuffix('"'): _resolve(folder, parser[section]["url"])
        for section in parser.sections()
        if section.strip("'").startswith('remote "') and "url" in parser[section]
    }
    if not remotes:
        raise DatasetError(
            f"{folder}/config names no remote, so a version could not be kept anywhere but in the cache",
            hint="dvc remote add -d NAME URL",
        )
    first = parser.get("core", "remote", fallback="")
    ordered = sorted(remotes.items(), key=lambda item: (item[0] != first, item[0]))
    return Locations(
        cache=_resolve(folder, parser.get("cache", "dir", fallback="cache")),
        remotes=tuple(ordered),
    )


def load_peers(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Stores of other nodes that are nearer than the remotes: folders or URLs, separated by commas.

    A node offers what lies in its DVC cache, below `files/md5`.
    """
    return tuple(url.strip().rstrip("/") for url in environment.get(PEERS_VARIABLE, "").split(",") if url.strip())


def prepare_dvc_files(places: Places) -> None:
    """Write `.dvc/config` and the ignore files where they are missing."""
    for path, text in (
        (places.root / ".dvc" / "config", DVC_CONFIG),
        (places.root / ".dvc" / ".gitignore", DVC_IGNORED),
        (places.root / "datasets" / ".gitignore", DATASETS_IGNORED),
    ):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _resolve(folder: Path, url: str) -> str:
    if urlparse(url).scheme not in ("", "file"):
        return url
    path = Path(url.removeprefix("file://"))
    return str(path if path.is_absolute() else (folder / path).resolve())
