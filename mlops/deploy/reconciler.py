"""Making this machine serve the desired state, in rounds, once or for good.

A kill -9 anywhere is made good by the next round. One reconciler works on an environment at a time.
Leaves to others: what happens in a round (product_round.py), and writing the state (state_keeper.py).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlops.deploy import traffic_switch
from mlops.deploy.desired_state import DesiredState
from mlops.deploy.environment import EnvironmentSpec
from mlops.deploy.instance_check import GoldenSource
from mlops.deploy.product_round import ProductOutcome, ProductRound
from mlops.deploy.proxy_haproxy import Proxy
from mlops.deploy.runtime_podman import PodmanRuntime
from mlops.deploy.serving_lease import release_serving
from mlops.deploy.serving_record import record_serving
from mlops.deploy.site import Site
from mlops.deploy.slots import SlotTable
from mlops.deploy.state_keeper import Hook, ignore_step, verify_desired
from mlops.errors import EnvironmentFault, MlopsError, Reason, Refusal
from mlops.serving.runtime import Runtime

_MOST_ROUNDS = 5
"""A state that changes under every round is left to the next call."""
_WATCH_LOCK = "watch.lock"
"""Held as long as somebody watches, between the rounds, too."""


@dataclass(frozen=True)
class ReconcileOutcome:
    """How an environment came out of a call."""

    environment: str
    products: tuple[ProductOutcome, ...]
    """One per product and round."""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Every ground why what was desired when the call began is not what serves."""
        found: list[Reason] = []
        for product in self.products:
            found += product.refusal.reasons if product.refusal else ()
            found += [Reason("version-unfit", product.failure)] if product.failure else ()
        return tuple(found)


@dataclass(frozen=True)
class Reconciler:
    """Reconciles one environment on this machine."""

    site: Site
    rules: EnvironmentSpec
    runtime: Runtime
    golden: GoldenSource
    say: Callable[[str], None] = lambda line: None
    hook: Hook = ignore_step
    patience_seconds: float = 5.0
    """How long a rollback may take from moving traffic to its decision before it counts as interrupted."""
    tables: dict[str, SlotTable] = field(default_factory=dict)
    """Kept between rounds of `--watch`: counts of failed checks."""

    def run_once(self) -> ReconcileOutcome | Refusal:
        """Until this machine serves the desired state; a refusal when that does not count, or another call is at work.

        Raises:
            EnvironmentFault: A tool is missing or a port is taken.
            ServingError: The runtime or the proxy failed.
        """
        with reconciling(self.site, self.rules.name) as is_alone:
            if not is_alone:
                text = f"another `mlops deploy reconcile` works on {self.rules.name}"
                return Refusal((Reason("reconciler-at-work", text),))
            outcomes: list[ProductOutcome] = []
            for _ in range(_MOST_ROUNDS):
                state = verify_desired(self.site, self.rules.name)
                if isinstance(state, Refusal):
                    return state
                found = [
                    ProductRound(
                        self.site,
                        self.rules,
                        self.table_of(release.product),
                        state,
                        release,
                        golden=self.golden,
                        say=self.say,
                        hook=self.hook,
                        patience_seconds=self.patience_seconds,
                    ).converge()
                    for release in state.products
                ]
                outcomes += found
                outcomes += self._stop_undesired(state)
                if not any(outcome.is_outdated for outcome in found):
                    break
            return ReconcileOutcome(self.rules.name, tuple(outcomes))

    def _stop_undesired(self, state: DesiredState) -> list[ProductOutcome]:
        """What runs here of products that were taken out of the desired state ends."""
        outcomes = []
        for product in self.rules.traffic.ports:
            folder = self.site.places.serving_state / self.rules.name / product
            if state.find_product(product) is None and folder.is_dir():
                lines = tuple(stop_product(self, product))
                lines += record_serving(self.site, self.rules.name, product, ())
                for line in lines:
                    self.say(f"{self.rules.name} {product}: {line}")
                outcomes += [ProductOutcome(product, lines)] if lines else []
        return outcomes

    def watch(self, *, is_ending: Callable[[], bool]) -> Iterator[ReconcileOutcome | Refusal | MlopsError]:
        """Rounds until `is_ending`; a fault of one round is yielded, not raised, and the next round tries again."""
        with _locking(self.site, self.rules.name, _WATCH_LOCK, fcntl.LOCK_SH):
            while not is_ending():
                try:
                    yield self.run_once()
                except MlopsError as error:
                    yield error
                self.site.clock.sleep(self.rules.health.interval)

    def table_of(self, product: str) -> SlotTable:
        """Slots of a product, the same object in every round.

        Raises:
            EnvironmentFault: The environment has no port for it.
        """
        if product not in self.tables:
            self.tables[product] = make_slot_table(self.site, self.rules, product, runtime=self.runtime)
        return self.tables[product]


def make_slot_table(site: Site, rules: EnvironmentSpec, product: str, *, runtime: Runtime) -> SlotTable:
    """The slots of a product in an environment.

    Raises:
        EnvironmentFault: The environment has no port for it.
    """
    port = rules.traffic.ports.get(product)
    if port is None:
        raise EnvironmentFault(
            f"{rules.name} has no port for {product}", hint="add it to traffic.ports of the environment"
        )
    folder = site.product_folder(rules.name, product)
    proxy = Proxy(folder, port, f"{product} in {rules.name}")
    return SlotTable(folder, f"{rules.name}.{product}", runtime, proxy)


@contextmanager
def reconciling(site: Site, environment: str) -> Iterator[bool]:
    """Yields whether this process is the one that reconciles; the lock vanishes with its holder."""
    with _locking(site, environment, "reconcile.lock", fcntl.LOCK_EX) as is_alone:
        yield is_alone


@contextmanager
def _locking(site: Site, environment: str, name: str, kind: int) -> Iterator[bool]:
    handle = os.open(site.environment_folder(environment) / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def stop_serving(reconciler: Reconciler, *, is_dry_run: bool = False) -> Iterator[str]:
    """Stop instances and proxies of an environment on this machine; yields one line for each product that ran.

    Raises:
        EnvironmentFault: Somebody reconciles it, and would start again what is stopped.
    """
    site, name = reconciler.site, reconciler.rules.name
    with (
        _locking(site, name, _WATCH_LOCK, fcntl.LOCK_EX) as is_unwatched,
        reconciling(site, name) as is_alone,
    ):
        if not is_dry_run and not (is_unwatched and is_alone):
            raise EnvironmentFault(
                f"another `mlops deploy reconcile` works on {name}, and would start again what is stopped",
                hint="end it first; `mlops doctor --processes` names it",
            )
        for product in reconciler.rules.traffic.ports:
            if not (site.places.serving_state / name / product).is_dir():
                continue
            if is_dry_run:
                table = reconciler.table_of(product)
                ran = table.proxy.find_pid() is not None or bool(table.load_instances())
            else:
                ran = bool(list(stop_product(reconciler, product)))
            if ran:
                yield f"{name} {product}: proxy and instances"
    if isinstance(reconciler.runtime, PodmanRuntime) and not is_dry_run:
        reconciler.runtime.release_store()


def stop_product(reconciler: Reconciler, product: str) -> Iterator[str]:
    """Stop the proxy and the instances of one product on this machine; yields a line for each that ran."""
    table = reconciler.table_of(product)
    traffic_switch.write_way_back(table.folder, None)
    instances = table.load_instances()
    if table.proxy.find_pid() is not None:
        table.proxy.stop()
        yield "the proxy is stopped"
    for slot, instance in instances.items():
        reconciler.runtime.stop(instance, timeout_seconds=reconciler.rules.traffic.drain)
        table.drop_note(slot)
        yield f"slot {slot}: stopped"
    release_serving(reconciler.site, reconciler.rules, product)
