"""Verdicts over small images with one thing wrong; the real image is in tests/integration."""

import io
import json
import tarfile
from datetime import UTC, datetime

import pytest

from mlops.clock import SystemClock
from mlops.provenance.digest import digest_bytes
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.testing import tiny_contract
from mlops.serving.verification import verify_image

_MODEL = "opt/mlops/models/income/1"
_CLEAN = {
    "usr/bin/python3.11": b"x",
    "var/lib/dpkg/status.d/libssl3": b"Package: libssl3\nSource: openssl\nVersion: 3.0-1\nDescription: x\n y\n",
    "usr/share/doc/libssl3/copyright": b"Format: dep5\nLicense: Apache-2.0\n",
    "opt/mlops/lib/numpy-2.dist-info/METADATA": b"Name: NumPy\nVersion: 2\nLicense-Expression: MIT\n\nLicense: no\n",
    f"{_MODEL}/contract.json": json.dumps(tiny_contract().to_json()).encode(),
    f"{_MODEL}/evidence.json": json.dumps({"candidate": "sha256:" + "a" * 64}).encode(),
}
_CONFIG = {
    "User": "65532:65532",
    "Env": ["ORT_DISABLE_TELEMETRY=1"],
    "Entrypoint": ["/usr/bin/python3.11"],
    "StopSignal": "SIGTERM",
}


def _layer(members):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, given in members:
            changes = dict(given)
            header = tarfile.TarInfo(name)
            header.mode = 0o755
            content = changes.pop("content", b"x")
            for key, value in changes.items():
                setattr(header, key, value)
            header.size = len(content) if header.type == tarfile.REGTYPE else 0
            tar.addfile(header, io.BytesIO(content))
    return target.getvalue()


@pytest.fixture
def verify(tmp_path):
    """Verify an image of clean files, more members, and a changed config."""
    layout = ImageLayout(tmp_path / "images")
    osv = tmp_path / "osv"
    osv.mkdir()
    about = {"version": 1, "created": datetime.now(UTC).isoformat(), "ecosystems": ["PyPI", "Debian:12"]}
    (osv / "snapshot.json").write_text(json.dumps(about))
    (osv / "1.json").write_text(json.dumps({"id": "OSV-1", "affected": []}))

    def run(members=(), changes=None, *, clean=_CLEAN, diff_id=None):
        blobs = [_layer([(name, {"content": content}) for name, content in clean.items()])]
        blobs += [_layer(members)] if members else []
        config = {
            "config": {**_CONFIG, **(changes or {})},
            "rootfs": {"diff_ids": [diff_id or digest_bytes(blob) for blob in blobs]},
        }
        text = json.dumps(config).encode()
        tar = "application/vnd.oci.image.layer.v1.tar"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": layout.add_blob(text), "size": len(text)},
            "layers": [{"mediaType": tar, "digest": layout.add_blob(blob), "size": len(blob)} for blob in blobs],
        }
        digest = layout.put_image(manifest, reference="x:1", annotations={})
        return verify_image(layout.folder, digest, osv_snapshot=osv, clock=SystemClock())

    return run


def test_a_clean_image_passes(verify):
    found = verify()
    assert (found.verdict, found.reasons) == ("PASS", ())
    assert found.facts["debian_packages"] == found.facts["python_distributions"] == 1
    assert found.sbom == verify().sbom, "the same image gives the same bytes"


WEAK = {
    "shell": ([("usr/bin/sh", {})], {}),
    "package-manager": ([("usr/bin/dpkg", {})], {}),
    "tool": ([("usr/bin/curl", {})], {}),
    "setuid": ([("opt/x", {"mode": 0o4755})], {}),
    "world-writable": ([("opt/x", {"mode": 0o666})], {}),
    "owner": ([("opt/mlops/app/x.py", {"uid": 65532})], {}),
    "special-file": ([("opt/null", {"type": tarfile.CHRTYPE})], {}),
    "file-capabilities": ([("opt/x", {"pax_headers": {"SCHILY.xattr.security.capability": "x"}})], {}),
    "secret": ([("opt/key", {"content": b"-----BEGIN " + b"EC PRIVATE KEY-----"})], {}),
    "root-user": ([], {"User": "0:0"}),
    "secret-in-environment": ([], {"Env": ["DB_PASSWORD=x", "ORT_DISABLE_TELEMETRY=1"]}),
    "telemetry": ([], {"Env": []}),
    "loader-variable": ([], {"Env": ["LD_PRELOAD=/x", "ORT_DISABLE_TELEMETRY=1"]}),
    "entrypoint": ([], {"Entrypoint": ["python3"]}),
    "volumes": ([], {"Volumes": {"/data": {}}}),
    "stop-signal": ([], {"StopSignal": "SIGKILL"}),
    "licence": (
        [("opt/mlops/lib/evil-1.dist-info/METADATA", {"content": b"Name: evil\nVersion: 1\nLicense: GPL-3.0\n"})],
        {},
    ),
}


@pytest.mark.parametrize("code", WEAK)
def test_each_weakness_is_named(verify, code):
    found = verify(*WEAK[code])
    assert found.verdict == "FAIL"
    assert {reason.code for reason in found.reasons} == {code}


def test_a_file_that_a_later_layer_removes_is_gone(verify):
    assert verify([("usr/bin/.wh.python3.11", {})]).reasons[0].code == "entrypoint"


def test_a_copyright_may_stand_in_another_packages_folder(verify):
    clean = {**_CLEAN, "var/lib/dpkg/status.d/other": b"Package: other\nVersion: 1\n"}
    assert {reason.code for reason in verify(clean=clean).reasons} == {"licence"}
    link = ("usr/share/doc/other", {"type": tarfile.SYMTYPE, "linkname": "libssl3"})
    assert verify([link], clean=clean).verdict == "PASS"


def test_layers_that_contradict_the_config_are_named(verify):
    assert {reason.code for reason in verify(diff_id="sha256:" + "0" * 64).reasons} == {"layers"}


def test_an_image_without_a_model_is_named(verify):
    clean = {name: content for name, content in _CLEAN.items() if not name.startswith(_MODEL)}
    assert {reason.code for reason in verify(clean=clean).reasons} == {"no-model"}
