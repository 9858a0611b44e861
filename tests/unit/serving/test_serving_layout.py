"""An index names only images whose blobs are there, and each reference once."""

import json

import pytest

from mlops.errors import ServingError
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout, verify_blob


def _manifest(layout, text="layer"):
    config, layer = layout.add_blob(b"{}"), layout.add_blob(text.encode())
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": len(text)}],
    }


@pytest.fixture
def layout(tmp_path):
    return ImageLayout(tmp_path / "images")


def test_an_empty_folder_holds_no_images(layout):
    assert layout.images() == ()
    assert not layout.folder.exists()


def test_a_reference_moves_to_the_newest_image_and_others_stay(layout):
    layout.put_image(_manifest(layout, "old"), reference="income:1", annotations={})
    other = layout.put_image(_manifest(layout, "other"), reference="digits:1", annotations={})
    newest = layout.put_image(_manifest(layout, "new"), reference="income:1", annotations={})
    assert {image.reference: image.digest for image in layout.images()} == {"income:1": newest, "digits:1": other}
    assert layout.find("income:1").digest == layout.find(newest).digest == newest
    assert json.loads((layout.folder / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_an_image_with_a_missing_blob_is_not_recorded(layout):
    manifest = _manifest(layout)
    layout.blob_path(manifest["layers"][0]["digest"]).unlink()
    with pytest.raises(ServingError, match="is missing"):
        layout.put_image(manifest, reference="income:1", annotations={})
    assert layout.images() == ()


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_incomplete_image_is_seen(layout, damage):
    manifest = _manifest(layout)
    digest = layout.put_image(manifest, reference="income:1", annotations={})
    assert layout.is_complete(digest)
    path = layout.blob_path(manifest["layers"][0]["digest"])
    path.unlink() if damage == "gone" else path.write_bytes(b"l")
    assert not layout.is_complete(digest)


def test_a_changed_blob_is_refused(layout):
    digest = layout.add_blob(b"good")
    layout.blob_path(digest).write_bytes(b"evil")
    with pytest.raises(ServingError, match="corrupt"):
        layout.read_blob(digest)
    with pytest.raises(ServingError, match="corrupt"):
        verify_blob(layout, digest)


def test_a_stream_that_fails_leaves_nothing(layout):
    with pytest.raises(KeyError), layout.new_blob() as (stream, _):
        stream.write(b"half")
        raise KeyError
    assert list((layout.folder / "blobs" / "sha256").iterdir()) == []


def test_a_broken_index_is_named(layout):
    layout.folder.mkdir()
    (layout.folder / "index.json").write_text("{")
    with pytest.raises(ServingError, match=r"index\.json is not JSON"):
        layout.images()


def test_removing_keeps_the_others(layout):
    one = layout.put_image(_manifest(layout, "one"), reference="income:1", annotations={})
    two = layout.put_image(_manifest(layout, "two"), reference="income:2", annotations={})
    layout.remove_images({one})
    assert [image.digest for image in layout.images()] == [two]
