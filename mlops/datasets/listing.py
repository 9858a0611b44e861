"""Which datasets a project has, with what is pinned of each; reads only DVC files, so it is quick.

Leaves to others: what stands in a version (describing.py).
"""

from __future__ import annotations

from typing import Any

from mlops.datasets.parts import join_digests, list_pinned, load_part_pins
from mlops.datasets.recipe import list_recipes
from mlops.places import Places


def list_datasets(places: Places) -> list[dict[str, Any]]:
    """Every dataset with a recipe or a pin: name, digest (of a dataset in one piece), parts, rows, bytes.

    Raises:
        DatasetError: A DVC file is broken.
    """
    found = []
    for name in sorted({*list_recipes(places), *list_pinned(places)}):
        pins = load_part_pins(places, name)
        found.append(
            {
                "dataset": name,
                "digest": pins[0][1].manifest if len(pins) == 1 else None,
                "dvc_digest": join_digests(tuple((part, pin.dvc_digest) for part, pin in pins)) or None,
                "partitions": len(pins),
                "rows": sum(pin.rows for _, pin in pins) if pins else None,
                "bytes": sum(pin.bytes for _, pin in pins) if pins else None,
            }
        )
    return found
