"""This machine's project as the deploy room needs it: places, ledger, clock, ids, signing, and whose keys count."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from mlops.clock import SECOND_US, Clock
from mlops.deploy.roles import KeyEntry, load_roles
from mlops.errors import EnvironmentFault
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.provenance.ed25519 import SigningKey
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import MACHINE, make_key
from mlops.provenance.steps import StepBook

_DECIDE_SECONDS = 60.0


@dataclass(frozen=True)
class Site:
    """Where deploying happens."""

    places: Places
    ledger: Ledger
    clock: Clock
    ids: Ids
    step_book: StepBook

    def machine_key(self) -> SigningKey:
        """Signs the machine's commits; made on first use."""
        return make_key(self.places.keys_folder, MACHINE, clock=self.clock)

    def load_keyring(self) -> KeyRing:
        """Keys of people and machines in deploy/roles.yaml, and this machine's own.

        Raises:
            ProjectError: deploy/roles.yaml has problems.
        """
        roles = load_roles(self.places)
        accepted = [_accept(key, name) for name, person in roles.people.items() for key in person.keys]
        accepted += [_accept(key, name) for name, machine in roles.machines.items() for key in machine.keys]
        own = AcceptedKey(public=self.machine_key().public, owner="this machine")
        return KeyRing([*accepted, own])

    def environment_folder(self, environment: str) -> Path:
        """State of one environment on this machine."""
        folder = self.places.serving_state / environment
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def product_folder(self, environment: str, product: str) -> Path:
        """Proxy and slots of one product."""
        folder = self.environment_folder(environment) / product
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def deciding(self, environment: str) -> AbstractContextManager[object]:
        """One decision on an environment at a time; others wait for it.

        Raises:
            EnvironmentFault: Another decision holds it for a minute.
        """
        lock = FileLock(self.environment_folder(environment) / "decide.lock", timeout=_DECIDE_SECONDS)
        try:
            return lock.acquire()
        except Timeout as error:
            raise EnvironmentFault(
                f"another promotion or rollback of {environment} is at work", hint="wait for it and try again"
            ) from error


def _accept(key: KeyEntry, owner: str) -> AcceptedKey:
    end = key.until
    moment = None if end is None else int(datetime(end.year, end.month, end.day, tzinfo=UTC).timestamp()) * SECOND_US
    return AcceptedKey(public=key.public, owner=owner, not_after_us=moment)
