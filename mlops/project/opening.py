"""Opening a project: its places, ledger, clock, ids and step book in one value, handed down by commands.

Leaves to others: reading specs (each room reads its own).
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from mlops.clock import Clock, SystemClock
from mlops.errors import ProjectError
from mlops.ids import Ids, TimeIds
from mlops.ledger.connection import Ledger, open_ledger, sqlite_url
from mlops.places import Places, find_root
from mlops.provenance.artefacts import find_sidecar
from mlops.provenance.keys import load_machine_signer
from mlops.provenance.steps import PreviewBook, StepBook, Workbench


@dataclass(frozen=True)
class Project:
    """An open project; the ledger is opened when first used."""

    places: Places
    clock: Clock
    ids: Ids
    ledger_url: str
    is_preview: bool = False
    """Whether steps are only looked up, never done (`--dry-run`)."""

    @cached_property
    def ledger(self) -> Ledger:
        """The project's ledger, its schema brought up to date."""
        return open_ledger(self.ledger_url, self.clock)

    @cached_property
    def step_book(self) -> StepBook:
        """Steps signed by this machine's key, which is made on first use."""
        signer = load_machine_signer(self.places.keys_folder, clock=self.clock)
        kind = PreviewBook if self.is_preview else StepBook
        beside = partial(find_sidecar, self.places)
        return kind(self.ledger, clock=self.clock, ids=self.ids, signer=signer, find_sidecar=beside)

    def workbench(self, say: Callable[[str], None]) -> Workbench:
        """What the steps of a release work with."""
        return Workbench(self.places, self.ledger, self.clock, self.ids, self.step_book, say)

    def preview(self) -> Project:
        """The same project for a dry run."""
        return replace(self, is_preview=True)

    @property
    def person(self) -> str:
        """Who types: `MLOPS_PERSON`, or the name of the account."""
        return os.environ.get("MLOPS_PERSON") or getpass.getuser()

    def require_product(self, product: str) -> str:
        """The name itself.

        Raises:
            ProjectError: No such product; names those that exist.
        """
        known = self.places.products()
        if product not in known:
            raise ProjectError(
                f"unknown product {product!r} in {self.places.root}",
                hint=f"known products: {', '.join(known) or 'none'}; a product is a file training/<product>.yaml",
            )
        return product


def open_project(start: Path | None = None, *, clock: Clock | None = None) -> Project:
    """The project around `start` (default: the current folder).

    Raises:
        ProjectError: There is none.
    """
    places = Places(find_root(start or Path.cwd()))
    used_clock = clock or SystemClock()
    url = os.environ.get("MLOPS_LEDGER") or sqlite_url(places.ledger_file)
    return Project(places=places, clock=used_clock, ids=TimeIds(used_clock), ledger_url=url)
