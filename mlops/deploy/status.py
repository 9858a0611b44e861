"""What serves where since when: from the ledger, with what the proxies say now.

Leaves to others: printing (mlops/cli/deploy.py), the screen over all rooms (mlops/overview/status.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlops.clock import render_time
from mlops.deploy import sql_deployments, traffic_switch
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.proxy_haproxy import Proxy, find_outage
from mlops.deploy.site import Site
from mlops.deploy.state_keeper import find_hand_edit, load_desired_state


@dataclass(frozen=True)
class VersionStatus:
    """One version with traffic."""

    number: int
    image: str
    share: int
    """Percent, as noted when it was reached."""
    since: str
    """UTC time."""


@dataclass(frozen=True)
class ProductStatus:
    """One product in one environment."""

    product: str
    address: str
    """Where requests come in."""
    serving: tuple[VersionStatus, ...]
    desired: tuple[str, ...]
    """`3 at 100 %`, as decided last."""
    is_converged: bool
    """What serves is what is desired."""
    outage: str
    """Why nothing answers where this machine served; empty when something does."""
    last_known_good: int | None
    is_warm: bool
    """A rollback takes milliseconds."""
    healthy_instances: int | None
    """Slots that answer and have traffic, as the proxy sees them; None when no proxy runs on this machine."""
    last_failure: str | None


@dataclass(frozen=True)
class EnvironmentStatus:
    """One environment."""

    environment: str
    products: tuple[ProductStatus, ...]
    cause: str | None
    """Why the desired state is as it is."""
    commit: str | None
    problem: str | None
    """What is wrong with the desired state."""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def load_environment_status(site: Site, rules: EnvironmentSpec) -> EnvironmentStatus:
    """The state of one environment; nothing is changed."""
    state = load_desired_state(site, rules.name)
    edited = find_hand_edit(site, rules.name)
    with site.ledger.read() as connection:
        row = sql_deployments.load_desired(connection, rules.name)
        rows = sql_deployments.load_deployments(connection, environment=rules.name, is_current=True)
        barred = sorted(sql_deployments.load_barred(connection, rules.name).values(), key=lambda entry: -entry.at_us)
        known = {entry.image: entry for entry in sql_deployments.load_deployments(connection, environment=rules.name)}
    products: list[ProductStatus] = []
    for release in state.products:
        serving = tuple(
            VersionStatus(entry.number, entry.image, entry.share, render_time(entry.since_us))
            for entry in sorted(rows, key=lambda entry: -entry.share)
            if entry.product == release.product
        )
        good = release.last_known_good
        folder = site.places.serving_state / rules.name / release.product
        way = traffic_switch.read_way_back(folder)
        proxy = Proxy(folder, 0, release.product)
        outage = find_outage(folder) if serving else ""
        failures = [
            f"{render_time(entry.at_us)} {entry.image[:19]}: {entry.why}"
            for entry in barred
            if entry.image not in known or known[entry.image].product == release.product
        ]
        products.append(
            ProductStatus(
                product=release.product,
                address=f"http://127.0.0.1:{rules.traffic.ports.get(release.product, 0)}",
                serving=serving,
                desired=tuple(f"{version.number} at {version.share} %" for version in release.versions),
                is_converged=not outage
                and {(entry.image, entry.share) for entry in serving}
                == {(version.image, version.share) for version in release.versions},
                outage=outage,
                last_known_good=good.number if good else None,
                is_warm=way is not None and good is not None and way["image"] == good.image,
                healthy_instances=proxy.count_healthy() if proxy.find_pid() is not None else None,
                last_failure=failures[0] if failures else None,
            )
        )
    return EnvironmentStatus(
        environment=rules.name,
        products=tuple(products),
        cause=f"{row.cause}: {row.why}" if row else None,
        commit=row.commit_hash if row else None,
        problem=edited.reasons[0].text if edited else None,
    )
