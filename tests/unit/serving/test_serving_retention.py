"""A prune never takes what is needed."""

import os

import pytest

from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout, StoredImage
from mlops.serving.retention import apply_prune, plan_prune


def _image(reference):
    return StoredImage(reference=reference, digest=f"sha256:{reference}", annotations={})


IMAGES = [_image(f"income:{number}") for number in range(1, 13)] + [_image("digits:1"), _image("income:candidate-ab")]


def test_the_newest_by_number_stay_and_the_needed_ones():
    plan = plan_prune(IMAGES, needed={"sha256:income:2"}, keep=3)
    assert {image.reference for image, _ in plan.kept} == {
        "income:2",
        "income:10",
        "income:11",
        "income:12",
        "digits:1",
    }
    assert len(plan.removed) + len(plan.kept) == len(IMAGES)


def test_a_needed_candidate_image_stays():
    plan = plan_prune(IMAGES, needed={"sha256:income:candidate-ab"}, keep=1)
    assert "income:candidate-ab" in {image.reference for image, _ in plan.kept}


def test_nothing_can_be_kept_by_none():
    with pytest.raises(ValueError, match="at least one"):
        plan_prune(IMAGES, needed=(), keep=0)


@pytest.fixture
def layout(tmp_path):
    return ImageLayout(tmp_path / "images")


def _put(layout, reference, own):
    layers = [layout.add_blob(b"shared"), layout.add_blob(own)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": layout.add_blob(b"{}"), "size": 2},
        "layers": [{"mediaType": "x.tar", "digest": digest, "size": 6} for digest in layers],
    }
    return layout.put_image(manifest, reference=reference, annotations={})


def _make_old(layout):
    for path in (layout.folder / "blobs/sha256").iterdir():
        os.utime(path, (0, 0))


def _held(layout):
    return {path.read_bytes() for path in (layout.folder / "blobs/sha256").iterdir()}


def test_shared_layers_and_young_blobs_survive(layout):
    _put(layout, "income:1", b"old")
    newest = _put(layout, "income:2", b"new")
    _make_old(layout)
    young = layout.add_blob(b"being built")
    freed = apply_prune(layout, plan_prune(layout.images(), needed=(), keep=1))
    assert [image.digest for image in layout.images()] == [newest]
    assert freed > 0
    assert layout.has_blob(young)
    assert {b"shared", b"new", b"{}"} <= _held(layout)
    assert b"old" not in _held(layout)


def test_what_serves_stays_when_its_version_was_built_anew(layout):
    serving = _put(layout, "income:1", b"served")
    _put(layout, "income:1", b"built since")
    _make_old(layout)
    not_an_image = "sha256:" + "c" * 64
    assert apply_prune(layout, plan_prune(layout.images(), needed={serving, not_an_image}, keep=1)) == 0
    assert layout.is_complete(serving)
    assert apply_prune(layout, plan_prune(layout.images(), needed=(), keep=1)) > 0
    assert b"served" not in _held(layout)
