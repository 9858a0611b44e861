"""What every runtime must do: the fake of plain processes and, where they are installed, podman and bubblewrap."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

import pytest
from deploy_fakes import STUB_SERVER, ProcessRuntime, free_port

from mlops.deploy.instance_check import ask, is_ready, wait_ready
from mlops.deploy.runtime_bubblewrap import BubblewrapRuntime, is_bubblewrap_installed
from mlops.deploy.runtime_podman import PodmanRuntime, is_podman_installed
from mlops.errors import EnvironmentFault, ServingError
from mlops.provenance.digest import canonical_json, digest_bytes, hex_of
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.runtime import RunRequest, Runtime

RUNTIMES = {
    "process": (ProcessRuntime, lambda: True),
    "podman": (PodmanRuntime, is_podman_installed),
    "bubblewrap": (BubblewrapRuntime, is_bubblewrap_installed),
}
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_LEFT_OUT = re.compile(
    r"/(tests?|site-packages|idlelib|tkinter|turtledemo|ensurepip|lib2to3|unittest|pydoc_data|__pycache__|config-.*)$"
)


def interpreter_layer():
    """The interpreter that runs these tests with its libraries, as a layer: an image without any download."""
    program = Path(os.path.realpath(sys.executable))
    text = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    libraries = [Path(path) for path in re.findall(r"(/\S+) \(0x", text)]
    standard = Path(sysconfig.get_paths()["stdlib"])
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name in ("run/mlops", "tmp", "proc", "dev", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path in (program, *libraries):
            tar.add(path.resolve(), arcname=str(path).lstrip("/"))
        tar.add(
            standard,
            arcname=str(standard).lstrip("/"),
            filter=lambda entry: None if _LEFT_OUT.search(entry.name) else entry,
        )
        tar.add(STUB_SERVER, arcname="stub.py")
    return output.getvalue()


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A layout with two images of the stub server: one that serves, one that dies."""
    folder = tmp_path_factory.mktemp("layout")
    store = ImageLayout(folder)
    layer = interpreter_layer()
    blob = store.add_blob(layer)
    digests = {}
    for name, stub in (("good", {"number": 7}), ("dying", {"dies": True})):
        config = canonical_json({
            "architecture": "amd64", "os": "linux", "stub": stub,
            "config": {
                "User": "65532:65532",
                "Env": [f"STUB={json.dumps(stub)}", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONHOME={sys.base_prefix}"],
                "Entrypoint": [os.path.realpath(sys.executable), "-S", "/stub.py"],
            },
            "rootfs": {"type": "layers", "diff_ids": [digest_bytes(layer)]},
        })  # fmt: skip
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": store.add_blob(config), "size": len(config)},
            "layers": [{"mediaType": LAYER_TYPE, "digest": blob, "size": len(layer)}],
        }
        digests[name] = store.put_image(manifest, reference=f"stub:{name}", annotations={})
    return folder, digests


confining = pytest.mark.parametrize("runtime", ["podman", "bubblewrap"], indirect=True)
"""The fake trusts its layout, and a plain process is not confined."""


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.system] if name != "process" else []) for name in RUNTIMES]
)
def runtime(request, tmp_path):
    make, is_installed = RUNTIMES[request.param]
    if not is_installed():
        pytest.skip(f"{request.param} is not installed")
    made = make(tmp_path / "state")
    yield made
    for instance in made.list_instances():
        made.stop(instance, timeout_seconds=1)
    if isinstance(made, PodmanRuntime):
        made.release_store()


@pytest.fixture
def request_of(layout, tmp_path):
    folder, digests = layout

    def make(name="one", image="good", **changes):
        content = {
            "name": name,
            "layout": folder,
            "digest": digests[image],
            "socket_folder": tmp_path / "sockets" / name,
        }
        return RunRequest(**{**content, **changes})

    return make


def wait(instance, runtime):
    return wait_ready(instance.socket, timeout_seconds=10, is_alive=lambda: runtime.is_running(instance))


def test_an_instance_answers_is_found_again_and_stops(runtime, request_of):
    assert isinstance(runtime, Runtime)
    instance = runtime.start(request_of())
    assert wait(instance, runtime) is None
    assert (
        json.loads(ask(instance.socket, "POST", "/v2/models/x/infer", body=b'{"rows": [0.5]}')[1])["model_version"]
        == "7"
    )
    with pytest.raises(ServingError, match="running already"):
        runtime.start(request_of())
    again = type(runtime)(runtime.state)
    assert again.list_instances() == (instance,)
    runtime.stop(instance, timeout_seconds=5)
    assert not runtime.is_running(instance)
    assert runtime.list_instances() == ()
    assert not is_ready(instance.socket)
    runtime.stop(instance, timeout_seconds=1)  # stopping what is gone is no error


def test_what_dies_is_not_running_and_its_words_are_kept(runtime, request_of):
    instance = runtime.start(request_of(image="dying"))
    deadline = time.monotonic() + 10
    while runtime.is_running(instance) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runtime.is_running(instance)
    assert "the stub dies as told" in runtime.logs(instance)
    runtime.stop(instance, timeout_seconds=1)
    assert "the stub dies as told" in runtime.logs(instance)
    second = runtime.start(request_of())  # the name is free again
    assert wait(second, runtime) is None


@pytest.mark.system
@confining
def test_one_changed_byte_of_an_image_does_not_start(runtime, request_of, layout, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(layout[0], copy)
    digest = request_of().digest
    config = json.loads((copy / "blobs/sha256" / hex_of(digest)).read_bytes())["config"]["digest"]
    for blob in (config, digest):
        path = copy / "blobs/sha256" / hex_of(blob)
        path.write_bytes(path.read_bytes().replace(b"65532", b"65533", 1).replace(b'"2"', b'"3"') + b" ")
        with pytest.raises(ServingError):
            runtime.start(request_of(layout=copy))


@pytest.mark.system
@confining
def test_an_instance_has_neither_network_nor_rights(runtime, request_of):
    instance = runtime.start(request_of())
    assert wait(instance, runtime) is None
    pid = next(
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and b"/stub.py" in read(path / "cmdline") and b"bwrap" not in read(path / "cmdline")
        and str(instance.socket.parent) in read(path / "mountinfo").decode()
    )  # fmt: skip
    status = dict(line.split(":\t") for line in (Path(f"/proc/{pid}/status")).read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    interfaces = [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
    assert set(interfaces) <= {"lo"}
    root = next(line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/")
    assert "ro" in root.split()[5].split(",")


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_tampered_unpacked_image_is_unpacked_anew(request_of, tmp_path):
    if not is_bubblewrap_installed():
        pytest.skip("bubblewrap is not installed")
    runtime = BubblewrapRuntime(tmp_path / "state")
    runtime.stop(runtime.start(request_of()), timeout_seconds=5)
    (stub,) = (tmp_path / "state" / "roots").glob("*/content/stub.py")
    stub.write_text("raise SystemExit(9)")
    instance = runtime.start(request_of())
    assert wait(instance, runtime) is None
    runtime.stop(instance, timeout_seconds=5)


def test_a_missing_tool_is_one_sentence(monkeypatch, request_of, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for make, hint in (
        (PodmanRuntime, "apt-get install podman runc"),
        (BubblewrapRuntime, "apt-get install bubblewrap"),
    ):
        with pytest.raises(EnvironmentFault) as caught:
            make(tmp_path / "state").start(request_of())
        assert hint in caught.value.hint


def test_a_server_that_does_not_end_is_killed(runtime, request_of):
    instance = runtime.start(request_of())
    assert wait(instance, runtime) is None
    pid = int(instance.identity.split(":")[0]) if runtime.name == "process" else None
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    runtime.stop(instance, timeout_seconds=1)
    assert not runtime.is_running(instance)
    assert time.monotonic() - started < 30


def test_a_port_on_the_loopback_is_for_those_who_ask(runtime, request_of):
    port = free_port()
    instance = runtime.start(request_of(name="two", tcp_port=port))
    assert instance.tcp_port == port
    assert wait(instance, runtime) is None
