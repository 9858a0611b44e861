"""Opening the budgets of a project: read the files, apply them to the ledger, hand out the lease book."""

from __future__ import annotations

import getpass

from mlops.budgets import lease_rows
from mlops.budgets.admission import Admission
from mlops.budgets.configuration import apply_budgets
from mlops.budgets.lease_queue import LeaseQueue
from mlops.budgets.leases import LeaseBook
from mlops.budgets.spec import load_budgets
from mlops.clock import Clock
from mlops.ids import Ids
from mlops.ledger.connection import Ledger
from mlops.places import Places


def open_lease_book(places: Places, ledger: Ledger, clock: Clock, ids: Ids) -> LeaseBook:
    """The lease book, after changed budget files were applied.

    Raises:
        ProjectError: The budget files have problems; `items` lists all of them.
    """
    apply_budgets(ledger, load_budgets(places.budgets_folder), who=find_person())
    return LeaseBook(ledger, clock, ids)


def open_lease_queue(places: Places, ledger: Ledger, clock: Clock, ids: Ids) -> LeaseQueue:
    """Leases by turn, after changed budget files were applied.

    Raises:
        ProjectError: as `open_lease_book`.
    """
    return LeaseQueue(ledger, open_lease_book(places, ledger, clock, ids))


def settle_expired(ledger: Ledger, clock: Clock, ids: Ids) -> None:
    """Leases that ran out while nobody wrote to the ledger are settled, so that who reads it sees what is true now."""
    with ledger.read() as connection:
        if not lease_rows.list_live(connection, expired_at_us=clock.now_us()):
            return
    leases = LeaseBook(ledger, clock, ids)
    Admission(ledger, leases).drop_lost()
    leases.close_expired()


def find_person() -> str:
    """The name of the user who runs this process, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
