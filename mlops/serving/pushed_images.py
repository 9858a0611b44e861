"""Where images were pushed to, so that they can be taken back: noted in the event log, deleted by digest.

A registry keeps the blobs of a deleted manifest until it collects them; those that no other tag of the repository uses
are deleted here where the registry lets clients do so. Leaves to others: pushing (image_transfer.py), which images go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

import sqlalchemy as sa

from mlops.errors import ServingError
from mlops.ledger.connection import Transaction
from mlops.ledger.sql_events import load_events
from mlops.serving.oci_registry import RegistryClient, RegistryReference

_PUSHED = "image.pushed"


@dataclass(frozen=True)
class PushedCopy:
    """An image in a repository of a registry."""

    image: str
    registry: str
    repository: str


def record_push(transaction: Transaction, digest: str, target: RegistryReference) -> None:
    """Note it before the first byte goes: what was pushed half may lie there too."""
    transaction.append(_PUSHED, digest, {"registry": target.registry, "repository": target.repository})


def list_pushed(connection: sa.Connection, images: Collection[str]) -> tuple[PushedCopy, ...]:
    """Repositories that any of these images was pushed to, each once."""
    found = {
        PushedCopy(event.subject, event.body["registry"], event.body["repository"]): None
        for event in load_events(connection, kind_prefix=_PUSHED)
        if event.subject in images
    }
    return tuple(found)


def delete_pushed(copy: PushedCopy, *, make_client: Callable[[str, str], RegistryClient] = RegistryClient) -> str:
    """Delete an image, what refers to it, and its own blobs from a registry; returns a remark.

    Raises:
        ServingError: The registry is away, or does not let clients delete.
    """
    client = make_client(copy.registry, copy.repository)
    content = client.pull_manifest(copy.image)
    if content is None:
        return "was not there"
    manifest = json.loads(content)
    own = {part["digest"] for part in (manifest["config"], *manifest["layers"])}
    for referrer in client.list_referrers(copy.image):
        client.delete_manifest(str(referrer["digest"]))
    client.delete_manifest(copy.image)
    if client.pull_manifest(copy.image) is not None:
        raise ServingError(f"{copy.registry}/{copy.repository} still answers with {copy.image}")
    for tag in client.list_tags():
        other = json.loads(client.pull_manifest(tag) or b"{}")
        own -= {part["digest"] for part in (other.get("config") or {}, *(other.get("layers") or ())) if part}
    left = [digest for digest in sorted(own) if not client.delete_blob(digest)]
    return f"{len(left)} blobs stay until the registry collects its garbage" if left else ""
