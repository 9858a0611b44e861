"""Purged objects that came back: a push from a stale clone puts an erased shard on the remote again.

Leaves to others: removing them once more (forgetting.py).
"""

from __future__ import annotations

from pathlib import Path

from mlops.datasets.locations import load_locations
from mlops.datasets.objects import is_local, object_path
from mlops.datasets.tombstones import load_purged
from mlops.places import Places


def find_returned(places: Places, name: str) -> tuple[str, ...]:
    """Purged objects that lie in a store on this machine again, for instance after a push from a stale clone."""
    urls = [url for url in load_locations(places).object_urls if is_local(url)]
    places_of = (object_path(url, md5) for md5 in sorted(load_purged(places, name)) for url in urls)
    return tuple(path for path in places_of if Path(path).exists())
