"""Incidents that the machine noticed itself: a version that failed in an environment and was returned from.

The deploy room writes each return as an event; whoever reconciles calls this afterwards. A kill in between loses
nothing, since the events stay: the next call opens what is missing.
Leaves to others: noticing and going back (mlops/deploy).
"""

from __future__ import annotations

from mlops.deploy.site import Site
from mlops.incidents.sql_incidents import DEPLOYMENT, OPEN, IncidentRow, find_by_key, insert_incident
from mlops.ledger.sql_events import Event, load_events
from mlops.provenance.digest import digest_json
from mlops.provenance.sql_steps import find_steps_of_digest

SEVERITY = 2
"""Nobody was answered wrongly: the check stopped the version, or traffic went back."""


def open_for_returns(site: Site, environment: str) -> tuple[IncidentRow, ...]:
    """One incident for each automatic return of an environment that has none yet; returns the new ones."""
    with site.ledger.read() as connection:
        events = [
            event
            for event in load_events(connection, kind_prefix="digest.barred", subject=environment)
            if event.body.get("cause") == "automatic-return" and find_by_key(connection, _key_of(event)) is None
        ]
    return tuple(_open(site, event) for event in events)


def _key_of(event: Event) -> str:
    """Each return is its own incident: the same image may fail again after it was approved anew."""
    return digest_json({"event": event.number, "sha256": event.sha256})


def _open(site: Site, event: Event) -> IncidentRow:
    image, environment = str(event.body["image"]), event.subject
    with site.ledger.write() as transaction:
        made = next(find_steps_of_digest(transaction.connection, image, direction="out"), None)
        product = made.product if made else "unknown"
        number = int(made.facts.get("number", 0)) if made else 0
        row = IncidentRow(
            incident_id=site.ids.new(product),
            key=_key_of(event),
            kind=DEPLOYMENT,
            product=product,
            severity=SEVERITY,
            title=f"{product}@{number} failed in {environment}",
            reason=str(event.body.get("why", "")),
            state=OPEN,
            opened_us=transaction.now_us,
            opened_by="mlops",
            case_text="",
            case_digest="",
            affected={"environment": environment, "number": number, "image": image, "event": event.number},
        )
        return insert_incident(transaction, row)
