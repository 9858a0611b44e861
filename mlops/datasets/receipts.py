"""What the last import of a dataset was made of, so that a rerun can say in a moment that nothing is to do.

A receipt is a memo, never a proof: it can be deleted at any time. Leaves to others: verifying the objects themselves.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mlops.files import write_atomically
from mlops.places import Places


@dataclass(frozen=True)
class Receipt:
    """Inputs of an import and what came out."""

    recipe: str
    """`sha256:…` of the recipe."""
    code: str
    """`sha256:…` of this room's source."""
    source: str
    """`sha256:…` of the raw files' digests."""
    tombstones: str
    """`sha256:…` of who was withdrawn."""
    dvc_digest: str = ""
    rows_in_train_and_test: int = 0
    rows_refused: int = 0
    leaks: tuple[str, ...] = ()

    def has_same_inputs(self, other: Receipt) -> bool:
        """Whether both came from the same recipe, code, raw files and tombstones."""
        names = ("recipe", "code", "source", "tombstones")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def load_receipt(places: Places, name: str) -> Receipt | None:
    """The last import's receipt; None when there is none that can be read."""
    try:
        content = json.loads(_path(places, name).read_text(encoding="utf-8"))
        return Receipt(**{**content, "leaks": tuple(content["leaks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save_receipt(places: Places, name: str, receipt: Receipt) -> None:
    """Keep the receipt of a finished import."""
    write_atomically(_path(places, name), json.dumps(asdict(receipt), sort_keys=True))


def _path(places: Places, name: str) -> Path:
    return places.cache / "datasets" / f"{name}.receipt.json"
