"""Purged objects that came back: a push from a stale clone puts an erased shard on the remote again.

Leaves to others: what is purged in the first place (forgetting.py).
"""

from __future__ import annotations

from pathlib import Path

from mlops.datasets.dvc_store import DvcStore
from mlops.datasets.locations import load_locations
from mlops.datasets.objects import is_local, object_path
from mlops.datasets.parts import split_digest
from mlops.datasets.tombstones import load_purged
from mlops.datasets.verifying import pinned_digest
from mlops.places import Places


def find_returned(places: Places, name: str) -> tuple[str, ...]:
    """Purged objects that lie in a store on this machine again, for instance after a push from a stale clone."""
    urls = [url for url in load_locations(places).object_urls if is_local(url)]
    places_of = (object_path(url, md5) for md5 in sorted(load_purged(places, name)) for url in urls)
    return tuple(path for path in places_of if Path(path).exists())


def sweep_returned(places: Places, name: str) -> tuple[str, ...]:
    """Remove purged objects that came back, from the cache and every remote; returns where they lay.

    Raises:
        DatasetError: A store cannot be written.
    """
    returned = find_returned(places, name)
    if returned:
        store, witness = DvcStore(places), split_digest(name, pinned_digest(places, name) or "")[0][1]
        for md5 in sorted({"".join(Path(path).parts[-2:]) for path in returned}):
            store.delete(md5, witness=witness)
    return returned
