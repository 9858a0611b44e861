"""Debian's buildah as the builder: the same files and configuration as ours, in an image that buildah wrote."""

import json
import shutil

import pytest

from mlops.errors import EnvironmentFault, ServingError
from mlops.serving.image import build_image
from mlops.serving.oci_buildah import assemble, read_tree
from mlops.serving.oci_layout import ImageLayout

pytestmark = pytest.mark.system


def _with_buildah(bakery, version):
    if shutil.which("buildah") is None:
        pytest.skip("buildah is missing")
    spec = bakery.request.spec.model_copy(update={"builder": "buildah"})
    return build_image(bakery.request_with(version=version, spec=spec))


@pytest.fixture(scope="module")
def made(bakery):
    return _with_buildah(bakery, "buildah")


def _tree_and_config(layout, digest):
    manifest = layout.read_manifest(digest)
    tree = read_tree(layout, [(layer["digest"], layer["mediaType"]) for layer in manifest["layers"]])
    return tree, json.loads(layout.read_blob(manifest["config"]["digest"])), manifest


def test_it_holds_the_same_files_and_says_the_same_of_itself(bakery, made):
    layout = ImageLayout(bakery.request.layout)
    assert made.digest != bakery.built.digest
    assert layout.find("income:buildah").digest == made.digest and layout.is_complete(made.digest)
    ours, our_config, our_manifest = _tree_and_config(layout, bakery.built.digest)
    theirs, config, manifest = _tree_and_config(layout, made.digest)
    assert {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} == {
        name for name in {*ours, *theirs} if "/models/income/" in name
    }, "only the folder named by the version differs"
    assert config["config"]["Labels"].pop("io.buildah.version")
    for said in (our_config["config"]["Labels"], config["config"]["Labels"]):
        said.pop("org.opencontainers.image.version")
    assert config["config"] == our_config["config"]
    assert [layer.name for layer in made.layers] == ["base", "runtime", "app", "model"]
    assert [layer.diff_id for layer in made.layers] == config["rootfs"]["diff_ids"]
    evidence = {name: value for name, value in our_manifest["annotations"].items() if "evidence" in name}
    assert evidence.items() <= manifest["annotations"].items()
    assert not list((bakery.request.cache / "serving").glob("buildah-*")), "buildah's stores end with the build"


@pytest.mark.slow
def test_the_same_buildah_gives_the_same_digest_again(bakery, made):
    assert _with_buildah(bakery, "buildah").digest == made.digest


def test_without_buildah_the_build_says_what_to_do_and_records_nothing(bakery, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = bakery.request.spec.model_copy(update={"builder": "buildah"})
    with pytest.raises(EnvironmentFault, match="buildah is not installed") as fault:
        build_image(bakery.request_with(version="without", spec=spec))
    assert "apt-get install buildah" in fault.value.hint
    assert ImageLayout(bakery.request.layout).find("income:without") is None


_IMPOSTOR = """#!/bin/sh
# Answers like buildah, and pushes an image of only the first layers that it was given.
for last; do :; done
case "$*" in *" push "*) cp -r "$IMPOSTED" "${last#oci:}";; esac
"""


def test_an_image_with_other_files_than_were_given_is_refused(bakery, monkeypatch, tmp_path):
    layout = ImageLayout(bakery.request.layout)
    manifest = layout.read_manifest(bakery.built.digest)
    other = ImageLayout(tmp_path / "imposted")
    shutil.copytree(layout.folder / "blobs", other.folder / "blobs")
    other.put_image({**manifest, "layers": manifest["layers"][:-1]}, reference="x", annotations={})
    (tmp_path / "buildah").write_text(_IMPOSTOR.replace("$IMPOSTED", str(other.folder)))
    (tmp_path / "buildah").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = json.loads(layout.read_blob(manifest["config"]["digest"]))["config"]
    with pytest.raises(ServingError, match="differs in 7 files") as refused:
        assemble(bakery.built.layers, layout=layout, config=config, annotations={}, cache=tmp_path / "cache")
    assert all("/models" in name for name in refused.value.items)
