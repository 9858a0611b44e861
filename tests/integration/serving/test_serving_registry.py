"""Push and pull against Debian's docker-registry on loopback: with login, broken connections, lies."""

import base64
import contextlib
import json
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request

import pytest

from mlops.errors import ServingError
from mlops.serving.image import build_image
from mlops.serving.image_transfer import attach_evidence, pull_image, push_image
from mlops.serving.oci_layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout
from mlops.serving.oci_registry import RegistryClient, parse_registry_reference
from mlops.serving.pushed_images import PushedCopy, delete_pushed
from mlops.serving.registry_credentials import Credentials, find_credentials

# bcrypt of "opensesame"
_HTPASSWD = "robot:$2y$05$abcdefghijklmnopqrstuuQbLfdQZSxZ9gjhA5V9o8Tyc6aQRO0Qi\n"
_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: 127.0.0.1:{port}}}
{auth}
"""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(folder, auth=""):
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is missing")
    port = _free_port()
    folder.mkdir()
    (folder / "registry.yml").write_text(_CONFIG.format(folder=folder / "data", port=port, auth=auth))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "registry.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            break
        except OSError:
            time.sleep(0.05)
    return process, port


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    process, port = _start(tmp_path_factory.mktemp("open") / "registry")
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def locked_port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    (folder / "htpasswd").write_text(_HTPASSWD)
    process, port = _start(folder / "registry", f"auth: {{htpasswd: {{realm: r, path: {folder}/htpasswd}}}}")
    yield port
    process.terminate()
    process.wait()


def _client(port, repository="income", **changes):
    return RegistryClient(f"127.0.0.1:{port}", repository, pause=lambda seconds: None, **changes)


def _reference(port, tag="1", repository="income"):
    return parse_registry_reference(f"127.0.0.1:{port}/{repository}:{tag}")


@pytest.mark.system
def test_an_image_comes_back_to_the_digest(bakery, port, tmp_path):
    layout = bakery.request.layout
    first, second = _reference(port, "1", "round"), _reference(port, "2", "round")
    pushed = push_image(layout, bakery.built.digest, target=first, client=_client(port, "round"))
    again = push_image(layout, bakery.built.digest, target=second, client=_client(port, "round"))
    assert (pushed.skipped_blobs, again.skipped_blobs, again.uploaded_bytes) == (0, 5, 0)
    assert _client(port, "round").list_tags() == ("1", "2")
    digest = pull_image(tmp_path / "images", first, reference="income:1", client=_client(port, "round"))
    assert digest == bakery.built.digest
    assert ImageLayout(tmp_path / "images").is_complete(digest)
    assert _client(port, "nobody").list_tags() == ()


@pytest.mark.system
def test_skopeo_reads_what_we_pushed(bakery, port):
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is missing")
    push_image(bakery.request.layout, bakery.built.digest, target=_reference(port, "s"), client=_client(port))
    shown = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", f"docker://127.0.0.1:{port}/income:s"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["Digest"] == bakery.built.digest


@pytest.mark.system
def test_evidence_is_found_by_the_fallback_tag(bakery, port, tmp_path):
    push_image(
        bakery.request.layout, bakery.built.digest, target=_reference(port, "e", "ev"), client=_client(port, "ev")
    )
    size = ImageLayout(bakery.request.layout).blob_path(bakery.built.digest).stat().st_size
    for kind in ("application/vnd.cyclonedx+json", "application/vnd.in-toto+json", "application/vnd.cyclonedx+json"):
        attach_evidence(
            kind.encode(),
            media_type=kind,
            image=bakery.built.digest,
            image_size=size,
            client=_client(port, "ev"),
            annotations={},
            scratch=tmp_path,
        )
    found = _client(port, "ev").list_referrers(bakery.built.digest)
    assert sorted(item["artifactType"] for item in found) == [
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
    ]
    assert _client(port, "ev").list_referrers("sha256:" + "0" * 64) == []


@pytest.mark.system
def test_a_login_is_needed_and_taken_from_dockers_config(bakery, locked_port, tmp_path):
    target = _reference(locked_port)
    with pytest.raises(ServingError, match="status 401"):
        push_image(
            bakery.request.layout,
            bakery.built.digest,
            target=target,
            client=_client(locked_port, find_login=lambda registry: None),
        )
    auth = base64.b64encode(b"robot:opensesame").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{locked_port}": {"auth": auth}}}))
    login = lambda registry: find_credentials(registry, environment={"DOCKER_CONFIG": str(tmp_path)})  # noqa: E731
    pushed = push_image(
        bakery.request.layout, bakery.built.digest, target=target, client=_client(locked_port, find_login=login)
    )
    assert pushed.uploaded_bytes > 0
    digest = pull_image(
        tmp_path / "images", target, reference="income:1", client=_client(locked_port, find_login=login)
    )
    assert digest == bakery.built.digest


class _CuttingProxy:
    """Forwards to the registry; connections are cut after `cut_bytes` in either direction, a few times."""

    def __init__(self, port, *, cut_bytes, most_cuts=3):
        outer = self
        self.connections = 0
        self.cuts = 0

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                outer.connections += 1
                budget = [cut_bytes if outer.cuts < most_cuts else 1 << 40]
                with socket.create_connection(("127.0.0.1", port)) as upstream:
                    back = threading.Thread(target=self._copy, args=(upstream, self.request, budget))
                    back.start()
                    self._copy(self.request, upstream, budget)
                    back.join()

            def _copy(self, source, target, budget):
                try:
                    while piece := source.recv(65_536):
                        budget[0] -= len(piece)
                        if budget[0] < 0:
                            break
                        target.sendall(piece)
                    if budget[0] < 0:
                        outer.cuts += 1
                        raise OSError
                    target.shutdown(socket.SHUT_WR)
                except OSError:
                    for end in (source, target):
                        with contextlib.suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.system
def test_broken_connections_are_survived(port, tmp_path):
    layout = ImageLayout(tmp_path / "here")
    weights = bytes(range(256)) * 20_000  # 5 MB: more than a cut connection lets through
    config, layer = layout.add_blob(b"{}"), layout.add_blob(weights)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config, "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": len(weights)}],
    }
    digest = layout.put_image(manifest, reference="x:1", annotations={})
    proxy = _CuttingProxy(port, cut_bytes=2_000_000)
    try:
        client, target = _client(proxy.port, "broken"), _reference(proxy.port, repository="broken")
        push_image(layout.folder, digest, target=target, client=client)
        proxy.cuts = 0
        assert pull_image(tmp_path / "there", target, reference="x:1", client=client) == digest
        assert ImageLayout(tmp_path / "there").is_complete(digest)
        assert proxy.cuts >= 3
    finally:
        proxy.close()


@pytest.mark.system
def test_a_base_image_comes_from_a_registry_by_digest(bakery, port, tmp_path):
    layout = ImageLayout(bakery.request.layout)
    manifest = layout.read_manifest(bakery.built.digest)
    config = json.loads(layout.read_blob(manifest["config"]["digest"]))
    config["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"][:1]
    text = json.dumps(config).encode()
    manifest |= {"layers": manifest["layers"][:1], "config": {**manifest["config"], "size": len(text)}}
    manifest["config"]["digest"] = layout.add_blob(text)
    base = layout.put_image(manifest, reference="base:1", annotations={})
    push_image(layout.folder, base, target=_reference(port, "1", "base"), client=_client(port, "base"))
    spec = bakery.request.spec.model_copy(update={"base": f"127.0.0.1:{port}/base@{base}"})
    request = bakery.request_with(spec=spec, layout=tmp_path / "images")
    built = build_image(request)
    assert [layer.digest for layer in built.layers] == [layer.digest for layer in bakery.built.layers]
    assert built.digest == bakery.built.digest, "the same layers make the same image"
    empty = bakery.request.spec.model_copy(update={"base": f"127.0.0.1:{port}/base@sha256:{'0' * 64}"})
    with pytest.raises(ServingError, match="has no sha256:0000"):
        build_image(bakery.request_with(spec=empty, layout=tmp_path / "images"))


@pytest.mark.system
def test_a_lying_registry_is_refused(bakery, port, tmp_path):
    push_image(
        bakery.request.layout, bakery.built.digest, target=_reference(port, "l", "lie"), client=_client(port, "lie")
    )

    class Liar(RegistryClient):
        def _pull_rest(self, digest, *, target, at, size):
            target.write_bytes(b"x" * size)

    with pytest.raises(ServingError, match="refused"):
        pull_image(
            tmp_path / "images", _reference(port, "l", "lie"), reference="x", client=Liar(f"127.0.0.1:{port}", "lie")
        )
    assert ImageLayout(tmp_path / "images").images() == ()


@pytest.mark.system
def test_a_registry_that_stays_away_is_named(tmp_path):
    port = _free_port()
    with pytest.raises(ServingError, match="failed 5 times"):
        pull_image(tmp_path, _reference(port), reference="x", client=_client(port))


REFERENCES = {
    "example.org/a/b:1": ("example.org", "a/b", "1", None),
    "localhost:5000/x": ("localhost:5000", "x", None, None),
    f"example.org/x@sha256:{'a' * 64}": ("example.org", "x", None, f"sha256:{'a' * 64}"),
}


@pytest.mark.parametrize(("text", "parts"), REFERENCES.items())
def test_references(text, parts):
    found = parse_registry_reference(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts


@pytest.mark.parametrize("text", ["income:1", "library/income", "example.org/UPPER", "example.org/x@sha256:12", ""])
def test_bad_references(text):
    with pytest.raises(ServingError, match="is not registry/repository"):
        parse_registry_reference(text)


def test_passwords_do_not_show():
    assert "secret" not in repr(Credentials("robot", "secret"))


def test_a_credential_helper_is_asked(tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-test"
    helper.write_text('#!/bin/sh\nread name\necho "{\\"Username\\": \\"$name\\", \\"Secret\\": \\"s\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"example.org": "test"}, "credsStore": "absent"}))
    environment = {"DOCKER_CONFIG": str(tmp_path)}
    assert find_credentials("example.org", environment=environment) == Credentials("example.org", "s")
    with pytest.raises(ServingError, match="'absent', which is not installed"):
        find_credentials("other.org", environment=environment)


@pytest.mark.system
def test_a_pushed_image_is_taken_back_with_what_refers_to_it_and_its_own_blobs_only(bakery, port, tmp_path):
    layout, digest = bakery.request.layout, bakery.built.digest
    store = ImageLayout(layout)
    manifest = store.read_manifest(digest)
    shared = manifest["layers"][0]["digest"]
    other = {**manifest, "layers": manifest["layers"][:1], "annotations": {}}
    kept = store.put_image(other, reference="income:other", annotations={})
    client = _client(port, "taken")
    for image, tag in ((digest, "1"), (kept, "2")):
        push_image(layout, image, target=_reference(port, tag, "taken"), client=client)
    size = store.blob_path(digest).stat().st_size
    evidence = attach_evidence(b"{}", media_type="application/x", image=digest, image_size=size, client=client,
                               annotations={}, scratch=tmp_path)  # fmt: skip
    copy = PushedCopy(digest, f"127.0.0.1:{port}", "taken")
    assert delete_pushed(copy) == ""
    assert client.pull_manifest(digest) is None and client.pull_manifest(evidence) is None
    assert client.pull_manifest("2") is not None and client.has_blob(shared)
    assert not client.has_blob(manifest["layers"][-1]["digest"])
    assert delete_pushed(copy) == "was not there"
    with pytest.raises(ServingError, match="failed 5 times"):
        delete_pushed(PushedCopy(digest, "127.0.0.1:9", "taken"), make_client=lambda registry, repository: _client(9))
    store.remove_images({kept})
