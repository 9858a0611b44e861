"""What should serve in an environment: `deploy/desired/<environment>.yaml`, written by the machine only.

A release set pins model versions by image digest together with the consumers' releases and contracts they were
promoted with. One value has one spelling, so its digest can be compared with the ledger's.
Leaves to others: deciding a new state (promotion.py, rollback.py) and committing it (state_keeper.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mlops.errors import ProjectError
from mlops.places import Places
from mlops.provenance.digest import digest_bytes, digest_json

VERSION = 1
_HEADER = "# Written by the machine (`mlops promote`, `mlops rollback`); the reconciler refuses edits by hand.\n"


@dataclass(frozen=True)
class ServedVersion:
    """One model version with its share of the traffic."""

    number: int
    image: str
    """`sha256:…` of the image's manifest."""
    candidate: str
    """`sha256:…` of the judged candidate in it."""
    share: int
    """Percent."""


@dataclass(frozen=True)
class PinnedConsumer:
    """A service as it was when the version was promoted."""

    service: str
    release: str
    contract: str
    """`sha256:…` of what it relies on."""


@dataclass(frozen=True)
class ReleaseSet:
    """What serves one product."""

    product: str
    versions: tuple[ServedVersion, ...]
    """Shares sum to 100; the first is the newest."""
    consumers: tuple[PinnedConsumer, ...] = ()
    last_known_good: ServedVersion | None = None
    """Where a rollback goes; its share is 100."""

    @property
    def digest(self) -> str:
        """Names the set."""
        return digest_json(asdict(self))

    def find_image(self, image: str) -> ServedVersion | None:
        """The served version with that image."""
        return next((version for version in self.versions if version.image == image), None)


@dataclass(frozen=True)
class DesiredState:
    """What should serve in one environment."""

    environment: str
    products: tuple[ReleaseSet, ...] = field(default=())

    def find_product(self, product: str) -> ReleaseSet | None:
        """The release set of one product."""
        return next((release for release in self.products if release.product == product), None)

    def with_product(self, release: ReleaseSet) -> DesiredState:
        """The same with one product's set replaced or added."""
        others = [entry for entry in self.products if entry.product != release.product]
        return replace(self, products=tuple(sorted([*others, release], key=lambda entry: entry.product)))

    def without_product(self, product: str) -> DesiredState:
        """The same, with nothing to serve of one product."""
        return replace(self, products=tuple(entry for entry in self.products if entry.product != product))

    def render_yaml(self) -> str:
        """The file's one spelling."""
        content: dict[str, Any] = {
            "version": VERSION,
            "environment": self.environment,
            "products": {release.product: _to_plain(release) for release in self.products},
        }
        return _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)

    @property
    def digest(self) -> str:
        """`sha256:…` of the file's text."""
        return digest_bytes(self.render_yaml().encode())


def desired_path(environment: str) -> str:
    """The file, relative to the project's root."""
    return f"deploy/desired/{environment}.yaml"


def desired_file(places: Places, environment: str) -> Path:
    """The file."""
    return places.root / desired_path(environment)


def parse_desired(text: str, *, source: str) -> DesiredState:
    """Text of the file to its value.

    Raises:
        ProjectError: It is not what `render_yaml` writes.
    """
    try:
        content = yaml.safe_load(text)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        products = tuple(_to_release(name, entry) for name, entry in sorted(content["products"].items()))
        state = DesiredState(environment=content["environment"], products=products)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProjectError(
            f"{source} is not a desired state as the machine writes it: {error}",
            hint=f"take the last signed one: `git checkout HEAD -- {source}`",
        ) from error
    if state.render_yaml() != text:
        raise ProjectError(
            f"{source} was edited by hand", hint=f"`git checkout HEAD -- {source}`, then use `mlops promote`"
        )
    return state


def _to_plain(release: ReleaseSet) -> dict[str, Any]:
    good = release.last_known_good
    return {
        "release_set": release.digest,
        "versions": [asdict(version) for version in release.versions],
        "consumers": [asdict(consumer) for consumer in release.consumers],
        "last_known_good": asdict(good) if good else None,
    }


def _to_release(product: str, entry: dict[str, Any]) -> ReleaseSet:
    good = entry["last_known_good"]
    release = ReleaseSet(
        product=product,
        versions=tuple(ServedVersion(**version) for version in entry["versions"]),
        consumers=tuple(PinnedConsumer(**consumer) for consumer in entry["consumers"]),
        last_known_good=ServedVersion(**good) if good else None,
    )
    if sum(version.share for version in release.versions) != 100:
        raise ValueError(f"shares of {product} do not sum to 100")
    return release
