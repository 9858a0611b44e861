"""One writer of datasets at a time in a project, with a scratch folder that no killed writer leaves behind.

Leaves to others: what is written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlops.errors import DatasetError
from mlops.places import Places

LOCK_SECONDS = 600


@contextmanager
def writing_datasets(places: Places) -> Iterator[Path]:
    """Hold the lock; yields a scratch folder, after removing what killed writers left.

    Raises:
        DatasetError: Another writer holds the lock for too long.
    """
    folder = places.cache / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "import.lock", timeout=LOCK_SECONDS):
            scratch_folders = (places.root / "datasets").glob(".*.*"), (places.root / "datasets").glob("*/.*.*")
            for path in (*folder.glob("import-*"), *scratch_folders[0], *scratch_folders[1]):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="import-", dir=folder) as scratch:
                yield Path(scratch)
    except Timeout as error:
        raise DatasetError(
            f"another import has held {folder}/import.lock for {LOCK_SECONDS} s", hint="wait for it, or end it"
        ) from error
