"""Reads what stands open in the topmost rooms, for the overview below them. Leaves to others: showing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlops.overview.open_matters import OpenMatters
    from mlops.project.opening import Project


def load_open_matters(project: Project) -> OpenMatters:
    """Open incidents and open erasure requests, at one moment.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    from mlops.erasure.sql_erasure import OPEN_REQUESTS, list_requests  # here: --help needs no SQL
    from mlops.incidents.sql_incidents import OPEN, list_incidents
    from mlops.overview.open_matters import OpenErasure, OpenIncident, OpenMatters

    with project.ledger.read() as connection:
        incidents = list_incidents(connection, state=OPEN)
        requests = list_requests(connection, states=OPEN_REQUESTS)
    return OpenMatters(
        tuple(OpenIncident(row.incident_id, row.product, row.severity, row.title, row.opened_us) for row in incidents),
        tuple(OpenErasure(row.dataset, row.state, row.deadline_us) for row in requests),
    )
