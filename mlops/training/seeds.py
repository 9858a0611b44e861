"""Seeds that follow from one another, so that one number in the spec fixes a whole sweep."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed of 63 bits that follows from another and from what it is for."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
