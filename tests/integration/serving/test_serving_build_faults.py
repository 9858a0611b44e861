"""What can go wrong while an image is built: a package that vanished, a full disk, a neighbour, a damaged layer."""

import json
import resource
import shutil
import subprocess
import sys

import pytest

from mlops.errors import ServingError
from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import DebianLock, DebianPackage, fetch_debian_packages
from mlops.serving.image import build_image
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.oci_unpack import unpack_image

_BUILD = """
import sys, json
from pathlib import Path
from mlops.errors import MlopsError
from mlops.serving.image import ImageRequest, ImageSpec, build_image
given = json.loads(sys.argv[1])
request = ImageRequest(spec=ImageSpec(), product="income", version=given["version"], evidence=given["evidence"],
    **{name: Path(given[name]) for name in ("candidate_folder", "layout", "downloads", "cache")})
try:
    print(build_image(request).digest)
except MlopsError as error:
    sys.exit(f"{error.message} ({error.hint})")
"""
_LARGEST_FILE = 4 << 20
"""Smaller than the base and the runtime layer, larger than everything else."""


def _start_build(bakery, folder, *, version="1", preexec_fn=None):
    given = {
        "candidate_folder": str(bakery.candidate),
        "layout": str(folder / "images"),
        "downloads": str(bakery.request.downloads),
        "cache": str(folder / "cache"),
        "evidence": dict(bakery.request.evidence),
        "version": version,
    }
    return subprocess.Popen(
        [sys.executable, "-c", _BUILD, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


def _limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, resource.RLIM_INFINITY))


@pytest.mark.system
def test_a_package_that_left_the_mirror_is_replaced_by_the_signed_current_one(tmp_path):
    if shutil.which("apt-get") is None:
        pytest.skip("apt-get is missing")
    gone = DebianPackage(name="netbase", version="0.0-gone", digest="sha256:" + "0" * 64)
    lock = DebianLock(suite="bookworm", architecture="amd64", packages=(gone,))
    store, said = ContentStore(tmp_path / "store"), []
    first = fetch_debian_packages(lock, store=store, cache=tmp_path / "cache", say=said.append)
    (taken,) = first.packages
    assert taken.name == "netbase" and taken.version != gone.version
    assert store.verify(taken.digest).is_file()
    assert first.notes == (f"netbase 0.0-gone is gone from the mirror: took the current {taken.version}",)
    assert len(said) == 1
    again = fetch_debian_packages(lock, store=store, cache=tmp_path / "cache", say=said.append)
    assert again == first, "the choice is kept and said again"
    assert len(said) == 1, "nothing is fetched twice"


def test_a_full_disk_leaves_no_half_image_and_the_next_build_succeeds(bakery, tmp_path):
    stopped = _start_build(bakery, tmp_path, preexec_fn=_limit_files)
    _, complaint = stopped.communicate(timeout=240)
    assert stopped.returncode == 1, complaint
    assert "cannot write a blob in" in complaint and "free disk space" in complaint
    layout = ImageLayout(tmp_path / "images")
    assert layout.images() == ()
    assert not list(layout.folder.rglob(".new-*"))
    finished = _start_build(bakery, tmp_path)
    shown, complaint = finished.communicate(timeout=240)
    assert shown.strip() == bakery.built.digest, complaint


def test_builds_at_the_same_time_do_not_disturb_each_other(bakery, tmp_path):
    started = [_start_build(bakery, tmp_path, version=version) for version in ("1", "1", "2")]
    shown = [(*build.communicate(timeout=240), build.returncode) for build in started]
    assert [code for *_, code in shown] == [0, 0, 0], shown
    digests = [text.strip() for text, *_ in shown]
    assert digests[0] == digests[1] == bakery.built.digest
    layout = ImageLayout(tmp_path / "images")
    assert {image.reference: image.digest for image in layout.images()} == {
        "income:1": digests[0],
        "income:2": digests[2],
    }
    assert all(layout.is_complete(digest) for digest in digests)


def test_a_damaged_layer_is_refused_and_written_anew_by_the_next_build(bakery, tmp_path):
    request = bakery.request_with(layout=tmp_path / "images", cache=tmp_path / "cache")
    built = build_image(request)
    victim = ImageLayout(request.layout).blob_path(built.layers[1].digest)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ServingError, match="corrupt"):
        unpack_image(request.layout, built.digest, tmp_path / "root")
    assert not (tmp_path / "root").exists()
    again = build_image(request)
    assert again.digest == built.digest
    assert [layer.name for layer in again.layers if not layer.is_reused] == ["runtime"]
    assert again.layers[1].reason == "its blob was missing or damaged"
    unpack_image(request.layout, built.digest, tmp_path / "root")
