"""Parts of a dataset: one DVC file pins at most about 10,000 shards, so a large dataset is many partitions.

A dataset in one piece is an out of `datasets.dvc`. One with partitions has `datasets/<name>.p00000.dvc` and so on, one
for each folder `datasets/<name>/p00000`; a partition holds a range of isolation groups. The version is named by the
list of the partitions' `.dir` objects. Leaves to others: reading and writing the objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.datasets.objects import read_object
from mlops.datasets.pins import Pin, load_pins, parse_pins
from mlops.errors import DatasetError, MlopsError
from mlops.places import Places
from mlops.provenance.git_repository import open_repository


@dataclass(frozen=True)
class Part:
    """A dataset, or one partition of it."""

    dataset: str
    name: str = ""
    """`p00003`; empty for a dataset in one piece."""

    @property
    def folder(self) -> str:
        """Where shards lie in the workspace, below the project root."""
        return f"datasets/{self.dataset}/{self.name}" if self.name else f"datasets/{self.dataset}"

    @property
    def pin_path(self) -> str:
        """The DVC file that pins it, below the project root."""
        return f"datasets/{self.dataset}.{self.name}.dvc" if self.name else "datasets.dvc"

    @property
    def out_path(self) -> str:
        """The out's path as that DVC file says it."""
        return f"{self.dataset}/{self.name}" if self.name else f"datasets/{self.dataset}"


def plan_parts(dataset: str, *, groups: int, partitions: int) -> tuple[tuple[Part, range], ...]:
    """Parts with the isolation groups each holds."""
    if partitions == 1:
        return ((Part(dataset), range(groups)),)
    bounds = [groups * number // partitions for number in range(partitions + 1)]
    return tuple(
        (Part(dataset, f"p{number:05d}"), range(bounds[number], bounds[number + 1])) for number in range(partitions)
    )


def part_pin_files(places: Places, dataset: str) -> tuple[Path, ...]:
    """DVC files of a dataset's partitions in the working tree, in order."""
    return tuple(sorted((places.root / "datasets").glob(f"{dataset}.p*.dvc")))


def load_part_pins(places: Places, dataset: str) -> tuple[tuple[Part, Pin], ...]:
    """What the working tree pins of a dataset, by part; empty when nothing is pinned.

    Raises:
        DatasetError: A DVC file is broken.
    """
    pin = load_pins(places.datasets_dvc).get(dataset)
    if pin is not None:
        return ((Part(dataset), pin),)
    found = []
    for path in part_pin_files(places, dataset):
        part = Part(dataset, path.suffixes[0].removeprefix("."))
        found.append((part, _pin_in(load_pins(path), part, str(path))))
    return tuple(found)


def load_part_pins_at(places: Places, dataset: str, *, revision: str) -> tuple[tuple[Part, Pin], ...]:
    """What a git revision pins of a dataset.

    Raises:
        DatasetError: No such revision, or it pins no version.
    """
    try:
        repository = open_repository(places.root)
        whole = parse_pins(repository.read_file("datasets.dvc", revision=revision).decode(), source=revision)
        if dataset in whole:
            return ((Part(dataset), whole[dataset]),)
        files = [Path(path) for path in sorted(repository.list_files("datasets", revision=revision))]
        names = [file.suffixes[0].removeprefix(".") for file in files if file.match(f"{dataset}.p*.dvc")]
        parts = [Part(dataset, name) for name in names]
        texts = [repository.read_file(part.pin_path, revision=revision).decode() for part in parts]
    except DatasetError:
        raise
    except MlopsError as error:
        raise DatasetError(
            f"git revision {revision!r} of dataset {dataset}: {error.message}", hint=error.hint
        ) from error
    if not parts:
        raise DatasetError(f"git revision {revision!r} pins no version of dataset {dataset!r}")
    return tuple(
        (part, _pin_in(parse_pins(text, source=part.pin_path), part, part.pin_path))
        for part, text in zip(parts, texts, strict=True)
    )


def require_part_pins(places: Places, dataset: str) -> tuple[tuple[Part, Pin], ...]:
    """The pinned version of a dataset, by part.

    Raises:
        DatasetError: None is pinned; says what to do.
    """
    pins = load_part_pins(places, dataset)
    if not pins:
        has_recipe = (places.root / "datasets" / f"{dataset}.yaml").is_file()
        known = ", ".join(list_pinned(places)) or "none"
        hint = f"run `mlops dataset import {dataset}`" if has_recipe else f"pinned datasets: {known}"
        raise DatasetError(f"datasets.dvc pins no version of dataset {dataset!r}", hint=hint)
    return pins


def list_pinned(places: Places) -> tuple[str, ...]:
    """Names of datasets with a pinned version."""
    whole = set(load_pins(places.datasets_dvc))
    cut = {path.name.partition(".")[0] for path in part_pin_files(places, "*")}
    return tuple(sorted(whole | cut))


def join_digests(pins: tuple[tuple[Part, str], ...]) -> str:
    """One text for a version: `<md5>.dir`, or `p00000=<md5>.dir,p00001=…`."""
    return ",".join(f"{part.name}={digest}" if part.name else digest for part, digest in pins)


def split_digest(dataset: str, dvc_digest: str) -> tuple[tuple[Part, str], ...]:
    """The parts of a version and their `.dir` objects."""
    found = []
    for item in dvc_digest.split(","):
        name, _, digest = item.rpartition("=")
        found.append((Part(dataset, name), digest))
    return tuple(found)


def list_shards(urls: tuple[str, ...], dataset: str, *, dvc_digest: str) -> Iterator[tuple[str, str]]:
    """(path, md5) of every file of a version, straight from its `.dir` objects: 256,000 in well under a second.

    Raises:
        DatasetError: A `.dir` is missing or changed.
    """
    for part, digest in split_digest(dataset, dvc_digest):
        prefix = f"{part.name}/" if part.name else ""
        content = read_object(urls, digest, what=f"the directory object of {part.folder}")
        yield from ((prefix + entry["relpath"], entry["md5"]) for entry in json.loads(content))


def _pin_in(pins: dict[str, Pin], part: Part, source: str) -> Pin:
    if part.name not in pins:
        raise DatasetError(f"{source} does not pin {part.out_path}", hint="restore it from git")
    return pins[part.name]
