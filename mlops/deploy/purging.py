"""Taking purged images out of environments: no way back leads to them, no instance runs them, no copy stays.

What serves is never touched: it is told, and goes when something else serves. Leaves to others: which images (its
caller), their layers in the layout (mlops/serving/oci_layout.py), the record of the purge (erased.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from mlops.deploy import sql_deployments, traffic_switch
from mlops.deploy.desired_state import DesiredState, ReleaseSet
from mlops.deploy.going_back import find_good_versions
from mlops.deploy.site import Site
from mlops.deploy.state_keeper import load_desired_state, write_desired
from mlops.deploy.withdrawal import load_unfit
from mlops.errors import MlopsError, Refusal
from mlops.provenance.lineage import ERASURE_PREFIX
from mlops.serving.runtime import Runtime

WAY_BACK_STEP = f"{ERASURE_PREFIX}-way-back"
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class PlaceReceipt:
    """What became of an image in one place."""

    place: str
    """`environment production`, `runtime podman`."""
    what: str
    image: str
    is_gone: bool
    reason: str


def find_serving(site: Site, images: Collection[str]) -> dict[str, str]:
    """Images that serve, by the desired state or by who has traffic, to where."""
    found: dict[str, str] = {}
    with site.ledger.read() as connection:
        environments = sql_deployments.list_environments(connection)
        current = sql_deployments.load_deployments(connection, is_current=True)
    for environment in environments:
        for release in load_desired_state(site, environment).products:
            found |= {version.image: environment for version in release.versions}
    found |= {row.image: row.environment for row in current}
    return {image: environment for image, environment in found.items() if image in images}


def drop_ways_back(site: Site, images: Collection[str]) -> Iterator[PlaceReceipt]:
    """Let no environment go back to these images: the next best version takes their place, or none.

    Raises:
        EnvironmentFault: Another decision on an environment takes too long.
    """
    with site.ledger.read() as connection:
        environments = sql_deployments.list_environments(connection)
    for environment in environments:
        with site.deciding(environment):
            state = load_desired_state(site, environment)
            for release in state.products:
                good = release.last_known_good
                if good is not None and good.image in images:
                    yield _replace_way_back(site, state, release, images)
                    state = load_desired_state(site, environment)
                _forget_warm(site, environment, release.product, images)


def _replace_way_back(site: Site, state: DesiredState, release: ReleaseSet, images: Collection[str]) -> PlaceReceipt:
    good = release.last_known_good
    assert good is not None  # the caller looked
    served = release.versions[0].image
    with site.ledger.read() as connection:
        unfit = load_unfit(site, connection, state.environment)
        history = sql_deployments.load_deployments(connection, environment=state.environment, product=release.product)
    bare = replace(release, last_known_good=None)
    fit = [
        version
        for version in find_good_versions(bare, barred=unfit, history=history, but=served)
        if version.image not in images and release.find_image(version.image) is None
    ]
    target = replace(release, last_known_good=fit[0] if fit else None)
    way = f"to version {fit[0].number} instead" if fit else "nowhere: no other version served well here"
    written = write_desired(
        site,
        state.with_product(target),
        step_kind=WAY_BACK_STEP,
        product=release.product,
        inputs={"image": served, "left": good.image},
        facts={"number": release.versions[0].number, "cause": "erasure", "why": f"a rollback leads {way}"},
        cause="erasure",
        why=f"Version {good.number} of {release.product} learned from a person who withdrew; a rollback leads {way}",
    )
    reason = written.render_text() if isinstance(written, Refusal) else f"a rollback leads {way}"
    what = f"rollback to {release.product}@{good.number}"
    return PlaceReceipt(f"environment {state.environment}", what, good.image, not isinstance(written, Refusal), reason)


def _forget_warm(site: Site, environment: str, product: str, images: Collection[str]) -> None:
    """The prepared move of `mlops rollback` must not lead to such an instance, not even for a moment."""
    folder = site.places.serving_state / environment / product
    if not folder.is_dir():
        return
    with traffic_switch.locked(folder):
        way = traffic_switch.read_way_back(folder)
        if way is not None and way["image"] in images:
            traffic_switch.write_way_back(folder, None)


def remove_copies(site: Site, images: Collection[str], runtimes: Sequence[Runtime]) -> Iterator[PlaceReceipt]:
    """Stop instances of these images, and remove what runtimes unpacked and logged of them."""
    for runtime in runtimes:
        place = f"runtime {runtime.name}"
        for image in sorted(images):
            try:
                running = [instance for instance in runtime.list_instances() if instance.digest == image]
                for instance in running:
                    runtime.stop(instance, timeout_seconds=_DRAIN_SECONDS)
                    yield PlaceReceipt(place, f"instance {instance.name}", image, not runtime.is_running(instance), "")
                had = runtime.forget_image(image, layout=site.places.images)
            except MlopsError as error:
                yield PlaceReceipt(place, "copy of the image and its logs", image, False, error.message)
                continue
            if had or running:
                yield PlaceReceipt(place, "copy of the image and its logs", image, True, "")
