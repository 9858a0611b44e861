"""`image verify` on the real image, and on images with one thing wrong."""

import json
from datetime import UTC, datetime

import pytest

from mlops.clock import SystemClock
from mlops.errors import ServingError
from mlops.serving.debian_packages import load_debian_lock
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.python_wheels import load_wheel_lock
from mlops.serving.sbom import validate_sbom
from mlops.serving.verification import verify_image


@pytest.fixture
def snapshot(tmp_path):
    folder = tmp_path / "osv"
    folder.mkdir()
    created = datetime.now(UTC).isoformat()
    (folder / "snapshot.json").write_text(
        json.dumps({"version": 1, "created": created, "ecosystems": ["PyPI", "Debian:12"]})
    )
    affected = [{"package": {"ecosystem": "PyPI", "name": "nobody"}, "versions": ["1"]}]
    (folder / "OSV-1.json").write_text(json.dumps({"id": "OSV-1", "affected": affected}))
    return folder


def test_our_image_passes(bakery, snapshot):
    found = verify_image(bakery.request.layout, bakery.built.digest, osv_snapshot=snapshot, clock=SystemClock())
    assert (found.verdict, found.reasons) == ("PASS", ())


def test_without_a_snapshot_nothing_passes(bakery, tmp_path):
    found = verify_image(bakery.request.layout, bakery.built.digest, osv_snapshot=tmp_path, clock=SystemClock())
    assert found.verdict == "UNDECIDED"
    assert not found.is_go


def test_the_bill_of_materials_lists_every_package_of_the_locks_and_nothing_else(bakery, snapshot):
    found = verify_image(bakery.request.layout, bakery.built.digest, osv_snapshot=snapshot, clock=SystemClock())
    document = json.loads(found.sbom)
    listed = {(part["name"], part["version"]) for part in document["components"] if part["type"] == "library"}
    debs = {(package.name, package.version) for package in load_debian_lock().packages}
    wheels = {(wheel.name, wheel.version) for wheel in load_wheel_lock()}
    assert listed == debs | wheels
    models = [part for part in document["components"] if part["type"] == "machine-learning-model"]
    assert [(model["name"], model["version"]) for model in models] == [("income", "1")]
    assert models[0]["modelCard"]["modelParameters"]["datasets"][0]["name"] == "income"
    models[0]["modelCard"]["surprise"] = 1
    with pytest.raises(ServingError, match="not valid CycloneDX"):
        validate_sbom(json.dumps(document).encode())


def test_a_layer_that_is_not_what_the_config_says_is_named(bakery, snapshot):
    layout = ImageLayout(bakery.request.layout)
    manifest = layout.read_manifest(bakery.built.digest)
    manifest["layers"][3] = manifest["layers"][2]
    digest = layout.put_image(manifest, reference="income:swapped", annotations={})
    found = verify_image(bakery.request.layout, digest, osv_snapshot=snapshot, clock=SystemClock())
    assert {"layers", "no-model"} <= {reason.code for reason in found.reasons}
