"""An image's layers become a folder, as a container runtime would see them.

Leaves to others: starting what is in it (runtimes).
"""

from __future__ import annotations

from pathlib import Path


def unpack_image(layout: Path, digest: str, target: Path) -> None:
    """Write the root file system of an image to the new folder `target`; every blob is checked against its digest.

    Raises:
        ServingError: A blob is missing or corrupt, or an entry would leave `target`.
    """
    raise NotImplementedError
