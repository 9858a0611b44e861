"""Raw sources: downloaded copies of a withdrawn person's only origin go, and rows leave the project's own files.

What was downloaded is dropped whole, its name and digest stay: an import fetches it again, leaves the person out and
drops it once more. Leaves to others: rows in shards (forgetting.py), git's history, which only people may rewrite.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.datasets.recipe import CsvFormat, FilesSource, RawFile, Recipe, WheelSource
from mlops.datasets.subjects import hash_subject, load_subject_key
from mlops.errors import MlopsError
from mlops.files import write_atomically
from mlops.places import Places
from mlops.provenance.digest import digest_file
from mlops.provenance.git_repository import open_repository


@dataclass(frozen=True)
class RawReceipt:
    """What became of one raw file."""

    path: str
    """As the recipe names it."""
    digest: str
    """`sha256:…` of what it was; empty when it is not here."""
    is_gone: bool
    reason: str


def purge_raw(places: Places, recipe: Recipe, subjects: Collection[bytes]) -> tuple[RawReceipt, ...]:
    """Take people out of the raw files that lie here.

    Args:
        places: The project.
        recipe: Names the files.
        subjects: Keyed hashes, 32 bytes each.

    Raises:
        DatasetError: The subject key is missing.
    """
    if isinstance(recipe.source, WheelSource):
        return tuple(drop_downloads(places, recipe.source))
    return tuple(_purge_files(places, recipe, recipe.source, subjects))


def drop_downloads(places: Places, source: WheelSource) -> Iterator[RawReceipt]:
    """Remove what was taken out of a wheel; the note of its digest stays, so that steps are still told apart by it."""
    for raw in source.files:
        pointer = places.downloads / "md5" / str(raw.md5)
        sha256 = pointer.read_text(encoding="utf-8") if pointer.is_file() else ""
        path = places.downloads / "sha256" / sha256
        is_here = bool(sha256) and path.is_file()
        if is_here:
            path.unlink()
        yield RawReceipt(raw.path, f"sha256:{sha256}" if sha256 else "", True, "" if is_here else "was not here")


def _purge_files(
    places: Places, recipe: Recipe, source: FilesSource, subjects: Collection[bytes]
) -> Iterator[RawReceipt]:
    key = load_subject_key(places, recipe.subject_key)
    for raw in source.files:
        path = places.root / raw.path
        if not path.is_file():
            is_absent = not path.exists()
            reason = "was not here" if is_absent else "people must take the person's files out of this folder"
            yield RawReceipt(raw.path, "", is_absent, reason)
            continue
        rewriter = _REWRITERS.get(recipe.format.kind)
        if recipe.subject.column is None or raw.md5 is not None or rewriter is None:
            reason = "people must take the rows out: the recipe names them by line or by digest, or the file is binary"
            yield RawReceipt(raw.path, digest_file(path), False, reason)
            continue
        digest = digest_file(path)
        removed = rewriter(path, raw, recipe, lambda subject_id: hash_subject(subject_id, key=key) in subjects)
        yield RawReceipt(raw.path, digest, True, f"{removed} rows removed")
        if _is_committed(places, raw.path):
            yield RawReceipt(f"git history of {raw.path}", digest, False, "only people may rewrite git's history")


def _rewrite_csv(path: Path, raw: RawFile, recipe: Recipe, is_leaving: Callable[[str], bool]) -> int:
    layout = recipe.format
    assert isinstance(layout, CsvFormat)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = raw.skip_lines + (1 if layout.header else 0)
    if layout.names:
        names = list(layout.names)
    else:
        names = next(csv.reader([lines[raw.skip_lines]], delimiter=layout.delimiter))
    at = [name.strip() for name in names].index(str(recipe.subject.column))

    def leaves(line: str) -> bool:
        fields = next(csv.reader(io.StringIO(line), delimiter=layout.delimiter), [])
        return len(fields) > at and is_leaving(fields[at].strip() if layout.trim else fields[at])

    return _keep(path, lines[:first], [(line, leaves(line)) for line in lines[first:]])


def _rewrite_jsonl(path: Path, _raw: RawFile, recipe: Recipe, is_leaving: Callable[[str], bool]) -> int:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    name = str(recipe.subject.column)
    return _keep(path, [], [(line, bool(line.strip()) and is_leaving(str(json.loads(line)[name]))) for line in lines])


def _keep(path: Path, head: list[str], rows: list[tuple[str, bool]]) -> int:
    kept = [line for line, is_leaving in rows if not is_leaving]
    if len(kept) != len(rows):
        write_atomically(path, "".join((*head, *kept)), mode=path.stat().st_mode & 0o777)
    return len(rows) - len(kept)


def _is_committed(places: Places, path: str) -> bool:
    try:
        return bool(open_repository(places.root).commits_of(path))
    except MlopsError:
        return False  # the project is not in git


_REWRITERS: dict[str, Callable[[Path, RawFile, Recipe, Callable[[str], bool]], int]] = {
    "csv": _rewrite_csv,
    "jsonl": _rewrite_jsonl,
}
