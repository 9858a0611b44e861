"""Writes a lock of the serving image anew; the files that it names go into the content store.

    .venv/bin/python scripts/serving_locks.py debian                        # what apt serves today
    .venv/bin/python scripts/serving_locks.py runtime onnxruntime==1.32.0   # these versions, the others as they are

Leaves to others: fetching (mlops/serving/debian_packages.py, python_wheels.py), trying the image (docs/serving.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlops.errors import MlopsError
from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import lock_current_packages, parse_debian_lock, render_debian_lock
from mlops.serving.python_wheels import lock_wheels, parse_wheel_lock, render_wheel_lock

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "mlops" / "serving" / "locks"
WHEELS = {
    "runtime": LOCKS / "wheels-cp311-x86_64.txt",
    "torch": LOCKS / "wheels-torch-cp311-x86_64.txt",
    "cuda": LOCKS / "wheels-cuda12-cp311-x86_64.txt",
}


def renew_debian(path: Path, *, store: ContentStore, cache: Path) -> None:
    """The same packages in apt's current versions."""
    old = parse_debian_lock(path.read_text("utf-8"))
    names = tuple(package.name for package in old.packages)
    new = lock_current_packages(names, suite=old.suite, architecture=old.architecture, store=store, cache=cache)
    path.write_text(render_debian_lock(new), encoding="utf-8")


def renew_wheels(path: Path, pins: tuple[str, ...], *, store: ContentStore) -> None:
    """The locked distributions, those of `pins` in these versions; what they need is not looked up."""
    text = path.read_text("utf-8")
    chosen = {wheel.name: f"{wheel.name}=={wheel.version}" for wheel in parse_wheel_lock(text)}
    chosen |= {pin.partition("==")[0]: pin for pin in pins}
    wheels = lock_wheels(tuple(chosen.values()), store=store)
    path.write_text(render_wheel_lock(wheels, title=text.partition("\n")[0]), encoding="utf-8")


def main(lock: str, *pins: str) -> None:
    """Renew one lock."""
    store = ContentStore(ROOT / ".mlops" / "store")
    if lock == "debian":
        renew_debian(LOCKS / "debian-bookworm-amd64.json", store=store, cache=ROOT / ".mlops" / "cache")
    else:
        renew_wheels(WHEELS[lock], pins, store=store)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("debian", *WHEELS) or any("==" not in pin for pin in sys.argv[2:]):
        sys.exit(str(__doc__))
    try:
        main(*sys.argv[1:])
    except MlopsError as error:
        sys.exit("\n  ".join((error.message, *error.items, error.hint)))
