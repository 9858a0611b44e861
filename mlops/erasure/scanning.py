"""The scan: is anything of a person left anywhere? Decodes every store of a project; looks for rows and keyed hashes.

It finds the person before a purge and nothing after it, by the same rules. Left out by name are only the records that
block re-entry and prove the process: tombstones, and erasure's own rows of the ledger may hold the keyed hash (never a
value of a row). Leaves to others: formats (decoding.py), removing what is found (purging.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from mlops.datasets.locations import load_locations
from mlops.datasets.objects import is_local
from mlops.erasure.decoding import SQLITE, Decoded, Leaf, Undecoded, decode, decode_database, decode_rows
from mlops.errors import MlopsError
from mlops.places import Places
from mlops.project.opening import Project
from mlops.provenance.git_objects import list_objects
from mlops.registry.mlflow_door import is_local as is_local_store
from mlops.registry.mlflow_door import tracking_uri

NOT_STORES = (".venv*", "node_modules", "__pycache__")
"""Folders of installed software: nothing of the machine writes rows there."""
_BLOCK_LIST = re.compile(rb"\s*(?:[0-9a-f]{64}\s+)*[0-9a-f]{64}\s*")


@dataclass(frozen=True)
class Needles:
    """What is looked for."""

    subjects: frozenset[bytes] = field(repr=False)
    """Keyed hashes, 32 bytes each; found as bytes and as hex."""
    values: frozenset[str] = field(default=frozenset(), repr=False)
    """Values of rows that nobody else has, as text; numbers are found in binary columns and tensors too."""


@dataclass(frozen=True)
class Finding:
    """One place where something is left, or that could not be looked into."""

    store: str
    """First part of the path below the project, or `git`."""
    place: str
    """Path, and after each `!` the way inside."""
    what: str
    """`keyed hash`, `value`, or `undecoded: …`; never what was found."""

    @property
    def is_match(self) -> bool:
        """Whether something of the person is there, not only something that cannot be read."""
        return not self.what.startswith("undecoded")


def scan_project(project: Project, needles: Needles) -> tuple[Finding, ...]:
    """Look through every file, database, archive, image layer and git object of a project.

    Args:
        project: An open project.
        needles: What is looked for.

    Returns:
        Every place with a match, and every place that could not be decoded; empty means that nothing is left.
    """
    matcher = _Matcher(needles)
    found: dict[tuple[str, str, str], Finding] = {}
    for store, decoded in _list_everything(project):
        for leaf in decoded:
            for what in _judge(leaf, matcher):
                found.setdefault((store, leaf.place, what), Finding(store, leaf.place, what))
    return tuple(found.values())


def _judge(leaf: Leaf | Undecoded, matcher: _Matcher) -> Iterator[str]:
    if isinstance(leaf, Undecoded):
        yield f"undecoded: {leaf.problem}"
        return
    is_own = leaf.is_own or (isinstance(leaf.content, bytes) and _BLOCK_LIST.fullmatch(leaf.content) is not None)
    if not is_own and matcher.has_subject(leaf.content):
        yield "keyed hash"
    if matcher.has_value(leaf.content):
        yield "value"


def _list_everything(project: Project) -> Iterator[tuple[str, Decoded]]:
    root = project.places.root
    for path in _list_files(root):
        place = path.relative_to(root).as_posix()
        yield place.split("/")[0] if not place.startswith(".mlops/") else place.split("/")[1], _open_file(path, place)
    yield "git", _list_git(root)
    yield from _list_elsewhere(project)


def _list_files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = [name for name in names if not any(Path(name).match(pattern) for pattern in NOT_STORES)]
        if here.name == ".git" and "objects" in names:
            names.remove("objects")  # read through git, which knows its packs
        yield from (here / name for name in files if not (here / name).is_symlink() and (here / name).is_file())


def _open_file(path: Path, place: str) -> Decoded:
    try:
        with path.open("rb") as stream:
            is_database = stream.read(16) == SQLITE
        if is_database:
            yield from decode_database(path, place)
            yield Leaf(f"{place}!pages", path.read_bytes(), is_own=True)  # deleted rows stay in free pages
        else:
            is_log = path.name.endswith(("-wal", "-journal"))  # its pages hold erasure's own rows too
            for leaf in decode(path.read_bytes(), place):
                yield Leaf(leaf.place, leaf.content, is_log) if is_log and isinstance(leaf, Leaf) else leaf
    except FileNotFoundError:
        return  # it went while we looked
    except OSError as error:
        yield Undecoded(place, str(error))


def _list_git(root: Path) -> Decoded:
    try:
        for found in list_objects(root):
            yield from decode(found.content, f"{found.kind} {found.name[:12]}")
    except MlopsError as error:
        if (root / ".git").exists():
            yield Undecoded(str(root / ".git"), error.message)


def _list_elsewhere(project: Project) -> Iterator[tuple[str, Decoded]]:
    """Stores outside the project's folder, or a note that they were not looked into."""
    places = project.places
    if not project.ledger_url.startswith("sqlite"):
        yield "ledger", _list_ledger(project)
    uri = tracking_uri(places)
    if not is_local_store(uri) or not uri.startswith("sqlite"):
        yield "mlflow", iter([Undecoded(uri, "the tracking server is not on this machine")])
    for url in _remotes(places):
        if not is_local(url):
            yield "dvc", iter([Undecoded(url, "the remote is not on this machine")])
        elif not Path(url).is_relative_to(places.root):
            files = [path for path in sorted(Path(url).rglob("*")) if path.is_file()]
            if not files:
                yield "dvc", iter([Undecoded(url, "the remote is empty or not there")])
            for path in files:
                yield "dvc", _open_file(path, str(path))


def _remotes(places: Places) -> tuple[str, ...]:
    try:
        return load_locations(places).object_urls
    except MlopsError:
        return ()  # no dataset was imported yet


def _list_ledger(project: Project) -> Decoded:
    with project.ledger.read() as connection:
        for table in sa.inspect(connection).get_table_names():
            rows = connection.execute(sa.select(sa.text("*")).select_from(sa.table(table)))
            yield from decode_rows((tuple(row) for row in rows), "ledger", table)


@dataclass(frozen=True)
class _Matcher:
    """Needles in every form in which a leaf can hold them."""

    needles: Needles

    @cached_property
    def _subjects(self) -> tuple[bytes, ...]:
        return tuple(
            form for one in self.needles.subjects for form in (one, one.hex().encode(), one.hex().upper().encode())
        )

    @cached_property
    def _numbers(self) -> np.ndarray:
        return np.array([number for number in map(_parse_number, sorted(self.needles.values)) if number is not None])

    @cached_property
    def _packed(self) -> tuple[bytes, ...]:
        packed: list[np.generic] = [np.float64(number) for number in self._numbers]
        packed += [np.int64(it) for it in self._numbers if it.is_integer() and abs(it) < 2**62]
        return tuple(it.tobytes() for one in packed for it in (one, one.byteswap()))

    @cached_property
    def _words(self) -> dict[bytes, re.Pattern[bytes]]:
        words = [text.encode() for text in self.needles.values]
        return {it: re.compile(rb"(?<![0-9A-Za-z.])" + re.escape(it) + rb"(?![0-9A-Za-z])") for it in words}

    def _has_subject(self, content: bytes) -> bool:
        return any(form in content for form in self._subjects)  # `in` is 50 times as fast as one pattern for all

    def _has_value(self, content: bytes) -> bool:
        is_packed = any(form in content for form in self._packed)
        return is_packed or any(it in content and word.search(content) for it, word in self._words.items())

    def has_subject(self, content: bytes | np.ndarray | pa.ChunkedArray) -> bool:
        """Whether a keyed hash is in there."""
        if isinstance(content, bytes):
            return self._has_subject(content)
        if isinstance(content, np.ndarray):
            return self._has_subject(content.tobytes())
        kind = content.type
        if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind):
            wanted = pa.array(sorted(self.needles.subjects), pa.binary())
            return bool(pc.any(pc.is_in(content.cast(pa.binary()), value_set=wanted)).as_py())
        is_number = _flatten_numbers(content) is not None
        return not is_number and any(map(self._has_subject, _texts(content)))

    def has_value(self, content: bytes | np.ndarray | pa.ChunkedArray) -> bool:
        """Whether a value of a row is in there."""
        if isinstance(content, bytes):
            return self._has_value(content)
        if isinstance(content, np.ndarray):
            return bool(np.isin(content, _fit(self._numbers, content.dtype)).any())
        numbers = _flatten_numbers(content)
        if numbers is not None:
            return self.has_value(numbers)
        return any(map(self._has_value, _texts(content)))


def _fit(numbers: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Those numbers that a tensor of this type can hold, as it holds them."""
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return numbers.astype(kind)
    if kind.kind not in "iu":
        return numbers[:0]
    limits = np.iinfo(kind)
    is_whole = (numbers == np.floor(numbers)) & (numbers >= limits.min) & (numbers <= limits.max)
    return numbers[is_whole].astype(kind)


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _flatten_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    kind = column.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        column = pc.list_flatten(column)
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pc.drop_null(column).to_numpy()
    return None


def _texts(column: pa.ChunkedArray) -> Iterator[bytes]:
    is_nested = pa.types.is_nested(column.type)
    for value in (column if is_nested else pc.unique(column)).to_pylist():
        yield value if isinstance(value, bytes) else str(value).encode()
