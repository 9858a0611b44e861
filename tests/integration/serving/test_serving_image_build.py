"""The real image: reproducible to the digest, small, readable by others, and alive."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mlops.errors import ServingError
from mlops.provenance.digest import digest_file
from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import load_debian_lock
from mlops.serving.image import build_image
from mlops.serving.inventory import take_inventory
from mlops.serving.oci_layout import ImageLayout
from mlops.serving.oci_unpack import layer_members, open_layer, unpack_image
from mlops.serving.python_wheels import load_wheel_lock
from mlops.serving.testing import tiny_contract, write_tiny_candidate, write_torch_candidate

_BUILD = """
import sys, json
from pathlib import Path
from mlops.serving.image import ImageRequest, ImageSpec, build_image
given = json.loads(sys.argv[1])
request = ImageRequest(spec=ImageSpec(), product="income", version="1", evidence=given["evidence"],
    **{name: Path(given[name]) for name in ("candidate_folder", "layout", "downloads", "cache")})
print(build_image(request).digest)
"""


def _build_elsewhere(bakery, folder: Path, *, mask: str, zone: str) -> str:
    candidate = folder / "moved"
    shutil.copytree(bakery.candidate, candidate)
    given = {
        "candidate_folder": str(candidate),
        "layout": str(folder / "images"),
        "downloads": str(bakery.request.downloads),
        "cache": str(folder / "cache"),
        "evidence": dict(bakery.request.evidence),
    }
    command = f'umask {mask}; exec "$0" -c "$1" "$2"'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, _BUILD, json.dumps(given)],
        cwd=folder,
        env={**os.environ, "TZ": zone, "HOME": str(folder), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_another_folder_mask_and_zone_give_the_same_digest(bakery, tmp_path):
    assert _build_elsewhere(bakery, tmp_path, mask="077", zone="Asia/Tokyo") == bakery.built.digest


def test_a_second_build_touches_no_layer(bakery):
    again = build_image(bakery.request)
    assert again.digest == bakery.built.digest
    assert all(layer.is_reused for layer in again.layers)


def test_another_model_writes_only_the_model_layer(bakery, tmp_path):
    write_tiny_candidate(tmp_path / "other", seed=1)
    other = build_image(bakery.request_with(candidate_folder=tmp_path / "other", version="2"))
    assert other.digest != bakery.built.digest
    assert {layer.name: layer.is_reused for layer in other.layers} == {
        "base": True,
        "runtime": True,
        "app": True,
        "model": False,
    }
    assert "model" in other.layers[-1].reason
    assert {image.reference for image in ImageLayout(bakery.request.layout).images()} >= {"income:1", "income:2"}


def test_the_cuda_layer_is_one_for_all_products_and_its_onnxruntime_comes_first(bakery, tmp_path):
    spec = bakery.request.spec.model_copy(update={"accelerator": "cuda"})
    lock = _store_wheel(bakery, tmp_path, name="onnxruntime-gpu", package="onnxruntime")
    request = bakery.request_with(spec=spec, version="gpu", wheel_locks={"cuda": lock})
    built = build_image(request)
    assert [layer.name for layer in built.layers] == ["base", "runtime", "cuda", "app", "model"]
    assert [layer.is_reused for layer in built.layers] == [True, True, False, True, False]
    write_tiny_candidate(tmp_path / "other", seed=2)
    other = build_image(replace(request, candidate_folder=tmp_path / "other", version="gpu-2"))
    assert other.layers[2].digest == built.layers[2].digest and other.layers[2].is_reused
    unpack_image(request.layout, built.digest, tmp_path / "root")
    path = _environment(request.layout, built.digest)["PYTHONPATH"].split(":")
    found = [folder for folder in path if (tmp_path / f"root{folder}/onnxruntime/__init__.py").is_file()]
    assert found == ["/opt/mlops/cuda", "/opt/mlops/lib"]
    assert "cuda" not in _environment(request.layout, bakery.built.digest)["PYTHONPATH"]
    packages = {(package.name, package.version) for package in take_inventory(request.layout, built.digest).packages}
    assert ("onnxruntime-gpu", "9.9") in packages


def test_the_torch_layer_is_laid_over_a_default_image_that_never_has_it(bakery, tmp_path):
    write_torch_candidate(tmp_path / "looping")
    spec = bakery.request.spec.model_copy(update={"runtime": "torch"})
    lock = _store_wheel(bakery, tmp_path, name="torch", package="torch")
    request = bakery.request_with(
        spec=spec, version="torch", wheel_locks={"torch": lock}, candidate_folder=tmp_path / "looping"
    )
    built = build_image(request)
    assert [layer.name for layer in built.layers] == ["base", "runtime", "torch", "app", "model"]
    assert [layer.is_reused for layer in built.layers] == [True, True, False, True, False]
    unpack_image(request.layout, built.digest, tmp_path / "root")
    path = _environment(request.layout, built.digest)["PYTHONPATH"].split(":")
    assert [folder for folder in path if (tmp_path / f"root{folder}/torch/__init__.py").is_file()] == [
        "/opt/mlops/torch"
    ]
    files = {file.name for file in (tmp_path / "root/opt/mlops/models/income/torch").iterdir()}
    assert files == {
        "weights.safetensors", "trainer.py", "model.json", "contract.json", "golden.json", "evidence.json",
    }  # fmt: skip
    assert not [name for name in _names(bakery) if "/torch/" in name]
    with pytest.raises(ServingError, match="torch must serve it"):
        build_image(replace(request, spec=bakery.request.spec, version="default"))
    assert ImageLayout(request.layout).find("income:default") is None


def _store_wheel(bakery, folder, *, name, package):
    """A stand-in of 300 bytes for a wheel of hundreds of megabytes; returns its lock."""
    stem = name.replace("-", "_")
    wheel = folder / f"{stem}-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{package}/__init__.py"), "")
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n"
        archive.writestr(zipfile.ZipInfo(f"{stem}-9.9.dist-info/METADATA"), text)
    digest = digest_file(wheel)
    ContentStore(bakery.request.downloads).adopt(wheel, digest=digest)
    (folder / f"{stem}.txt").write_text(f"{name}==9.9 --hash={digest}\n")
    return folder / f"{stem}.txt"


def _environment(layout, digest):
    store = ImageLayout(layout)
    config = json.loads(store.read_blob(store.read_manifest(digest)["config"]["digest"]))["config"]
    return dict(line.split("=", 1) for line in config["Env"])


def test_it_is_small_and_has_few_distributions(bakery):
    assert bakery.built.compressed_bytes <= 80_000_000
    names = _names(bakery)
    assert len({name for name in names if name.endswith(".dist-info/METADATA")}) <= 20
    assert any(name.startswith("var/lib/dpkg/status.d/") for name in names)


def test_nothing_in_it_is_a_shell_a_package_manager_or_privileged(bakery):
    programs = {Path(name).name for name in _names(bakery) if "/bin/" in name or name.startswith("bin/")}
    assert programs == {"python3.11"}
    layout = ImageLayout(bakery.request.layout)
    for layer in layout.read_manifest(bakery.built.digest)["layers"]:
        with open_layer(layout.blob_path(layer["digest"]), media_type=layer["mediaType"]) as stream:
            for _, member in layer_members(stream):
                assert member.type in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE), member.name
                assert not member.mode & 0o6000, member.name
                assert not member.mode & 0o002 or member.name == "tmp" or member.issym(), member.name


def test_every_file_of_the_model_is_in_it_as_judged(bakery, tmp_path):
    unpack_image(bakery.request.layout, bakery.built.digest, tmp_path / "root")
    folder = tmp_path / "root/opt/mlops/models/income/1"
    assert (folder / "model.onnx").read_bytes() == (bakery.candidate / "model.onnx").read_bytes()
    assert json.loads((folder / "evidence.json").read_bytes()) == dict(bakery.request.evidence)
    assert json.loads((folder / "contract.json").read_bytes()) == tiny_contract().to_json()


def test_a_model_that_breaks_its_contract_makes_no_image(bakery, tmp_path):
    write_tiny_candidate(tmp_path / "broken")
    contract = json.loads((tmp_path / "broken/contract.json").read_text())
    contract["inputs"][0]["name"] = "renamed"
    (tmp_path / "broken/contract.json").write_text(json.dumps(contract))
    with pytest.raises(ServingError, match="does not fulfil its contract"):
        build_image(bakery.request_with(candidate_folder=tmp_path / "broken", version="broken"))
    assert ImageLayout(bakery.request.layout).find("income:broken") is None


def test_an_incomplete_candidate_is_named(bakery, tmp_path):
    with pytest.raises(ServingError, match="not a complete candidate"):
        build_image(bakery.request_with(candidate_folder=tmp_path))


def test_a_changed_package_in_the_store_is_refused(bakery, tmp_path):
    source, store = ContentStore(bakery.request.downloads), ContentStore(tmp_path / "store")
    (store.folder / "sha256").mkdir(parents=True)
    wheels = load_wheel_lock()
    for package in (*load_debian_lock().packages, *wheels):  # other images' wheels lie there too
        if source.has(package.digest):
            shutil.copy(source.path(package.digest), store.path(package.digest))
    victim = store.path(wheels[0].digest)
    victim.write_bytes(victim.read_bytes() + b"!")
    with pytest.raises(ServingError, match="does not match its name"):
        build_image(bakery.request_with(downloads=store.folder, layout=tmp_path / "images", cache=tmp_path / "cache"))
    assert ImageLayout(tmp_path / "images").images() == ()


@pytest.mark.system
def test_skopeo_reads_it(bakery):
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is missing")
    shown = subprocess.run(
        ["skopeo", "inspect", f"oci:{bakery.request.layout}:income:1"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout)["Digest"] == bakery.built.digest


@pytest.mark.slow
@pytest.mark.system
def test_umoci_unpacks_the_gzip_form_to_the_same_files(bakery, tmp_path):
    if shutil.which("umoci") is None:
        pytest.skip("umoci is missing")
    spec = bakery.request.spec.model_copy(update={"compression": "gzip"})
    plain = build_image(bakery.request_with(version="gzip", spec=spec))
    assert [layer.diff_id for layer in plain.layers[:3]] == [layer.diff_id for layer in bakery.built.layers[:3]]
    assert plain.layers[3].media_type.endswith(".tar"), "weights are never gzipped"
    subprocess.run(
        ["umoci", "unpack", "--rootless", "--image", f"{bakery.request.layout}:income:gzip", tmp_path / "bundle"],
        capture_output=True,
        check=True,
    )
    unpack_image(bakery.request.layout, plain.digest, tmp_path / "root")
    assert _tree(tmp_path / "bundle/rootfs") == _tree(tmp_path / "root")


def _tree(root: Path):
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            found[name] = ("file", path.stat().st_size, path.stat().st_mode & 0o111 != 0)
        else:
            found[name] = ("folder",)
    return found


def _names(bakery):
    layout = ImageLayout(bakery.request.layout)
    names = []
    for layer in layout.read_manifest(bakery.built.digest)["layers"]:
        with open_layer(layout.blob_path(layer["digest"]), media_type=layer["mediaType"]) as stream:
            names += [member.name for _, member in layer_members(stream)]
    return names
