"""What forbids an image because of whom it was trained on: a withdrawn person, or data purged since.

Read from the chain behind the image, the tombstones and the subject index; nobody has to keep a list of fenced images.
Leaves to others: tombstones (mlops/datasets), what a fence leads to (promotion.py, going_back.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.datasets.fence import find_withdrawn
from mlops.datasets.tombstones import load_purged, load_tombstones
from mlops.datasets.version import load_dataset_version
from mlops.deploy.desired_state import ReleaseSet
from mlops.deploy.sql_deployments import BarredRow, DeploymentRow
from mlops.errors import DatasetError
from mlops.places import Places
from mlops.provenance.lineage import walk_back


@dataclass(frozen=True)
class ImageFence:
    """Who must not be behind an image, and is."""

    withdrawn: frozenset[tuple[str, bytes]]
    """(dataset, keyed hash) of each withdrawn person it was trained on."""
    problems: tuple[str, ...]
    """Other grounds: purged data, or data that cannot be read and so cannot be cleared."""

    @property
    def is_clear(self) -> bool:
        """Whether nothing speaks against the image."""
        return not self.withdrawn and not self.problems

    def render_reasons(self, *, tolerated: frozenset[tuple[str, bytes]] = frozenset()) -> tuple[str, ...]:
        """Grounds for people, without those of `tolerated` people."""
        counts: dict[str, int] = {}
        for dataset, _ in self.withdrawn - tolerated:
            counts[dataset] = counts.get(dataset, 0) + 1
        people = tuple(
            f"it was trained on {count} {'person' if count == 1 else 'people'} who withdrew from {dataset}; "
            f"`mlops erasure run {dataset}` makes a model without them"
            for dataset, count in sorted(counts.items())
        )
        return (*people, *self.problems)


def find_fence(connection: sa.Connection, places: Places, image: str) -> ImageFence:
    """Whether an image may (still) be promoted or gone back to, as far as people's withdrawals go.

    Args:
        connection: To the ledger.
        places: The project.
        image: `sha256:…`.
    """
    withdrawn: set[tuple[str, bytes]] = set()
    problems: list[str] = []
    for step in walk_back(connection, (image,)).steps:
        if step.kind != "dataset-import":
            continue
        name = str(step.facts.get("dataset") or step.product)
        if not load_purged(places, name) and not load_tombstones(places, name):
            continue
        try:
            version = load_dataset_version(places, name, revision=str(step.facts.get("dvc_digest")))
            purged = load_purged(places, name) & {shard.md5 for shard in version.manifest.shards}
            withdrawn |= {(name, subject) for subject in find_withdrawn(places, version)}
        except DatasetError as error:
            problems.append(f"whether it was trained on people who withdrew cannot be told: {error.message}")
            continue
        if purged:
            problems.append(
                f"it was trained on {len(purged)} shards of {name} that were purged for people who withdrew"
            )
    return ImageFence(frozenset(withdrawn), tuple(problems))


def find_fenced_images(connection: sa.Connection, places: Places, images: Iterable[str]) -> dict[str, str]:
    """Image to the first ground, for those among `images` that are fenced."""
    fences = {image: find_fence(connection, places, image) for image in dict.fromkeys(images)}
    return {image: fence.render_reasons()[0] for image, fence in fences.items() if not fence.is_clear}


def list_images(release: ReleaseSet) -> tuple[str, ...]:
    """Images that are served or kept warm."""
    noted = () if release.last_known_good is None else (release.last_known_good,)
    return tuple(dict.fromkeys(version.image for version in (*release.versions, *noted)))


def bar_fenced(
    connection: sa.Connection,
    places: Places,
    release: ReleaseSet,
    *,
    environment: str,
    barred: Mapping[str, BarredRow],
    history: Sequence[DeploymentRow],
    now_us: int,
) -> dict[str, BarredRow]:
    """What is barred, with every version to go back to that is fenced: nobody goes back to a person who withdrew."""
    fenced = find_fenced_images(connection, places, {*list_images(release), *(row.image for row in history)})
    own = {image: BarredRow(environment, image, now_us, "erasure", why) for image, why in fenced.items()}
    return {**own, **barred}
