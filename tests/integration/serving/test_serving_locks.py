"""Locks are renewed from what apt and pip offer: versions change, the rest of the file does not."""

import runpy
import shutil
from pathlib import Path

import pytest

from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import DebianLock, DebianPackage, load_debian_lock, parse_debian_lock
from mlops.serving.debian_packages import render_debian_lock as render
from mlops.serving.python_wheels import load_wheel_lock, parse_wheel_lock, render_wheel_lock

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "serving_locks.py"), run_name="serving_locks")


def test_only_the_named_wheels_change(tmp_path):
    small = tuple(wheel for wheel in load_wheel_lock() if wheel.name in ("click", "h11"))
    lock, store = tmp_path / "lock.txt", ContentStore(tmp_path / "store")
    lock.write_text(render_wheel_lock(small, title="# mine"))
    SCRIPT["renew_wheels"](lock, ("click==8.1.8",), store=store)
    renewed = parse_wheel_lock(lock.read_text())
    assert lock.read_text().startswith("# mine\n")
    assert {wheel.name: wheel.version for wheel in renewed} == {"click": "8.1.8", "h11": small[1].version}
    assert renewed[1] == small[1]
    assert all(store.verify(wheel.digest) for wheel in renewed)


@pytest.mark.system
def test_debian_packages_come_in_the_versions_of_today(tmp_path):
    if shutil.which("apt-get") is None:
        pytest.skip("apt is missing")
    shipped = load_debian_lock()
    old = (DebianPackage(name="media-types", version="0", digest="sha256:" + "0" * 64),)
    lock, store = tmp_path / "lock.json", ContentStore(tmp_path / "store")
    lock.write_text(render(DebianLock(suite=shipped.suite, architecture=shipped.architecture, packages=old)))
    SCRIPT["renew_debian"](lock, store=store, cache=tmp_path / "cache")
    (renewed,) = parse_debian_lock(lock.read_text()).packages
    assert renewed.name == "media-types"
    assert renewed.version != "0"
    assert store.verify(renewed.digest)
