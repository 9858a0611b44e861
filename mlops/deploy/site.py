"""This machine's project as the deploy room needs it: places, ledger, clock, ids, signing, and whose keys count."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from mlops.clock import Clock
from mlops.deploy.chain_rules import RELEASE_KINDS, load_chain_rules, load_machine_keyring
from mlops.errors import EnvironmentFault
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places
from mlops.provenance.ed25519 import SigningKey
from mlops.provenance.keyring import KeyRing
from mlops.provenance.keys import MACHINE, make_key
from mlops.provenance.steps import StepBook
from mlops.provenance.verify import ChainRules, Loader

_DECIDE_SECONDS = 60.0


@dataclass(frozen=True)
class Site:
    """Where deploying happens."""

    places: Places
    ledger: Ledger
    clock: Clock
    ids: Ids
    step_book: StepBook
    manifest_loader: Loader | None = None
    """How the bytes of a dataset version are checked; by default where DVC keeps them."""

    def machine_key(self) -> SigningKey:
        """Signs the machine's commits; made on first use."""
        return make_key(self.places.keys_folder, MACHINE, clock=self.clock)

    def load_keyring(self) -> KeyRing:
        """Keys of machines whose attestations and commits count: this one's own, and those of deploy/roles.yaml.

        Raises:
            ProjectError: deploy/roles.yaml has problems.
        """
        self.machine_key()
        return load_machine_keyring(self.places)

    def load_chain_rules(self, *, erased: Mapping[str, str]) -> ChainRules:
        """What the chain behind an image that is to serve is held against.

        Args:
            erased: Digest to the erasure certificate under which it was purged.

        Raises:
            ProjectError: deploy/roles.yaml has problems.
        """
        self.machine_key()
        rules = load_chain_rules(self.places, required_kinds=RELEASE_KINDS | {"probe"}, erased=erased)
        if self.manifest_loader is None:
            return rules
        return replace(rules, loaders={**rules.loaders, "manifest": self.manifest_loader})

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
