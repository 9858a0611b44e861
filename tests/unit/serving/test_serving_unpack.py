"""Unpacking follows the image specification and never leaves the target."""

import io
import tarfile

import pytest

from mlops.errors import ServingError
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.oci_tar import MEDIA_TYPES, file_entry, link_entry, write_layer
from mlops.serving.oci_unpack import digest_of_tar, unpack_image


def _put(layout, *blobs, media_type=MEDIA_TYPES["none"]):
    layers = [{"mediaType": media_type, "digest": layout.add_blob(blob), "size": len(blob)} for blob in blobs]
    config = {"mediaType": CONFIG_TYPE, "digest": layout.add_blob(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    return layout.put_image(manifest, reference="x:1", annotations={})


def _raw(*members):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, kind, content in members:
            header = tarfile.TarInfo(name)
            header.type = kind
            if kind == tarfile.REGTYPE:
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
            else:
                header.linkname = content
                tar.addfile(header)
    return target.getvalue()


def _packed(entries, compression="none"):
    target = io.BytesIO()
    write_layer(entries, target, compression=compression)
    return target.getvalue()


@pytest.fixture
def layout(tmp_path):
    return ImageLayout(tmp_path / "images")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_layers_lie_over_each_other(layout, tmp_path, compression):
    lower = {"etc/a": file_entry(b"old"), "etc/b": file_entry(b"b"), "bin/run": file_entry(b"!", is_executable=True)}
    upper = {"etc/a": file_entry(b"new"), "etc/.wh.b": file_entry(b""), "link": link_entry("etc/a")}
    blobs = [_packed(lower, compression), _packed(upper, compression)]
    unpack_image(layout.folder, _put(layout, *blobs, media_type=MEDIA_TYPES[compression]), tmp_path / "root")
    root = tmp_path / "root"
    assert (root / "link").read_bytes() == b"new"
    assert not (root / "etc/b").exists()
    assert (root / "bin/run").stat().st_mode & 0o777 == 0o755


def test_an_opaque_folder_hides_what_was_below(layout, tmp_path):
    lower, upper = (
        _packed({"d/old": file_entry(b"")}),
        _packed({"d/.wh..wh..opq": file_entry(b""), "d/new": file_entry(b"")}),
    )
    unpack_image(layout.folder, _put(layout, lower, upper), tmp_path / "root")
    assert [path.name for path in (tmp_path / "root/d").iterdir()] == ["new"]


LEAVING = {
    "a name with dots": [("../evil", tarfile.REGTYPE, b"x")],
    "a link outside, then a file through it": [("out", tarfile.SYMTYPE, "/tmp"), ("out/evil", tarfile.REGTYPE, b"x")],
    "a relative link outside": [("d/out", tarfile.SYMTYPE, "../.."), ("d/out/evil", tarfile.REGTYPE, b"x")],
    "a hard link outside": [("evil", tarfile.LNKTYPE, "../../secret")],
}


@pytest.mark.parametrize("members", LEAVING.values(), ids=LEAVING)
def test_an_entry_that_would_leave_is_refused_or_kept_inside(layout, tmp_path, members):
    (tmp_path / "secret").write_text("s")
    before = set(tmp_path.iterdir())
    try:
        unpack_image(layout.folder, _put(layout, _raw(*members)), tmp_path / "root")
    except ServingError as error:
        assert "leave" in error.message or "hard link" in error.message
        assert not (tmp_path / "root").exists()
    assert not (tmp_path / "evil").exists()
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "images", tmp_path / "root"}


def test_an_absolute_name_stays_below_the_target(layout, tmp_path):
    unpack_image(layout.folder, _put(layout, _raw(("/abs", tarfile.REGTYPE, b"x"))), tmp_path / "root")
    assert (tmp_path / "root/abs").read_bytes() == b"x"


def test_an_absolute_link_is_followed_inside_the_image(layout, tmp_path):
    members = [
        ("run/lock", tarfile.DIRTYPE, ""),
        ("var/run", tarfile.SYMTYPE, "/run"),
        ("var/run/pid", tarfile.REGTYPE, b"1"),
    ]
    unpack_image(layout.folder, _put(layout, _raw(*members)), tmp_path / "root")
    assert (tmp_path / "root/run/pid").read_bytes() == b"1"


def test_a_corrupt_layer_is_refused_before_anything_is_used(layout, tmp_path):
    digest = _put(layout, _packed({"a": file_entry(b"x")}))
    path = layout.blob_path(layout.read_manifest(digest)["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ServingError, match="corrupt"):
        unpack_image(layout.folder, digest, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_the_diff_id_is_of_the_plain_tar(layout, tmp_path):
    target = io.BytesIO()
    blob = write_layer({"a": file_entry(b"x")}, target, compression="zstd")
    path = tmp_path / "blob"
    path.write_bytes(target.getvalue())
    assert digest_of_tar(path, media_type=blob.media_type) == blob.diff_id
