"""Running images with podman and runc: the one door to podman. Fulfils `mlops.serving.runtime.Runtime`.

Its stores lie below `.mlops/serving/podman`; podman wants a short path, so a link in the temporary folder leads there.
An image is loaded by the digest of its manifest and run by the digest of its configuration, so no name decides.
Leaves to others: what should run (reconciler.py), and checks of what answers (instance_check.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops.deploy.seccomp import render_profile
from mlops.errors import EnvironmentFault, ServingError
from mlops.files import folder_aside, write_atomically
from mlops.provenance.digest import canonical_json, hex_of
from mlops.serving.oci_layout import INDEX_TYPE, MANIFEST_TYPE, ImageLayout, verify_blob
from mlops.serving.runtime import SOCKET_NAME, Instance, RunRequest, remove_ended_logs, require_idle

INSTALL = "run `apt-get install podman runc`"
_LABEL = "mlops.instance"
_CALL_SECONDS = 120
_COMMON = ("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--log-level", "error")
# Without CAP_SYS_RESOURCE podman's default limits cannot be set; these can.
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
_HARDENING = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt",
    "no-new-privileges",
    "--tmpfs",
    "/tmp:rw,size=64m,mode=1777",  # noqa: S108 - inside the container
)


@dataclass(frozen=True)
class PodmanRuntime:
    """Podman with a store of its own."""

    state: Path
    """`places.serving_state`."""

    @property
    def name(self) -> str:
        """`podman`."""
        return "podman"

    def start(self, request: RunRequest) -> Instance:
        """As `Runtime.start`."""
        self._require_name_free(request.name)
        image = self._load(request.layout, request.digest)
        request.socket_folder.mkdir(parents=True, exist_ok=True)
        request.socket_folder.chmod(0o777)  # the user inside must write; the folder above is closed
        (request.socket_folder / SOCKET_NAME).unlink(missing_ok=True)
        label = {
            "name": request.name,
            "digest": request.digest,
            "socket": str(request.socket_folder / SOCKET_NAME),
            "tcp_port": request.tcp_port,
        }
        made = self._call(
            "run", "--detach", "--name", request.name, "--label", f"{_LABEL}={json.dumps(label, sort_keys=True)}",
            "--pull", "never", "--log-driver", "k8s-file", *_LIMITS, *_HARDENING, *self._seccomp_flags(),
            *_limit_flags(request),
            *_network_flags(request), *_mount_flags(request), *_environment_flags(request), image,
            is_checked=False,
        )  # fmt: skip
        if made.returncode != 0:
            self._call("rm", "--force", request.name, is_checked=False)
            raise ServingError(
                f"podman could not start {request.digest[:19]} as {request.name}: {made.stderr.strip()}",
                hint=f"`{INSTALL[5:-1]}`" if "runc" in made.stderr and "not found" in made.stderr else "",
            )
        return _to_instance(label, identity=made.stdout.strip())

    def is_running(self, instance: Instance) -> bool:
        """As `Runtime.is_running`."""
        found = self._call("inspect", "--format", "{{.State.Running}}", instance.identity, is_checked=False)
        return found.returncode == 0 and found.stdout.strip() == "true"

    def stop(self, instance: Instance, *, timeout_seconds: float) -> int | None:
        """As `Runtime.stop`; what it wrote is kept."""
        seconds = str(max(1, round(timeout_seconds)))
        self._call("stop", "--time", seconds, instance.identity, is_checked=False, seconds=timeout_seconds + 60)
        code = self._call("inspect", "--format", "{{.State.ExitCode}}", instance.identity, is_checked=False)
        if code.returncode == 0:
            write_atomically(self._log_file(instance.name), self._read_logs(instance.identity))
        self._call("rm", "--force", "--time", "1", instance.identity, is_checked=False)
        return int(code.stdout) if code.returncode == 0 else None

    def logs(self, instance: Instance) -> str:
        """As `Runtime.logs`."""
        if self._call("container", "exists", instance.identity, is_checked=False).returncode == 0:
            return self._read_logs(instance.identity)
        path = self._log_file(instance.name)
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def list_instances(self) -> tuple[Instance, ...]:
        """As `Runtime.list_instances`."""
        if not (self.state / "podman").exists():
            return ()
        found = self._call("ps", "--filter", f"label={_LABEL}", "--format", "json")
        return tuple(
            _to_instance(json.loads(entry["Labels"][_LABEL]), identity=entry["Id"])
            for entry in json.loads(found.stdout or "[]")
        )

    def forget_image(self, digest: str, *, layout: Path) -> bool:
        """As `Runtime.forget_image`; its configuration's digest is read from the layout, so forget it here first."""
        if not (self.state / "podman").exists():
            return False
        running = self.list_instances()
        require_idle(running, digest)
        remove_ended_logs(self.state / "logs", running)
        store = ImageLayout(layout)
        if not store.has_blob(digest):
            return False
        config = hex_of(str(store.read_manifest(digest)["config"]["digest"]))
        if self._call("image", "exists", config, is_checked=False).returncode != 0:
            return False
        self._call("rmi", "--force", config)
        return True

    def release_store(self) -> None:
        """Leave nothing behind outside the state folder when nothing runs: podman's mount of its store, the short link.

        The store itself stays, so that the next start is quick; without the mount the folder can be removed.
        """
        if not (self.state / "podman").exists() or self.list_instances():
            return
        store = (self.state / "podman" / "storage" / "overlay").resolve()
        if store.is_mount():
            subprocess.run(["umount", str(store)], capture_output=True, check=False)
        self._link().unlink(missing_ok=True)

    def _require_name_free(self, name: str) -> None:
        state = self._call("inspect", "--type", "container", "--format", "{{.State.Running}}", name, is_checked=False)
        if state.returncode == 0 and state.stdout.strip() == "true":
            raise ServingError(f"an instance {name} is running already", hint="stop it, or use another name")
        if state.returncode == 0:
            self._call("rm", "--force", name)

    def _load(self, layout: Path, digest: str) -> str:
        """Bring the image into podman's store, every blob checked; returns the digest of its configuration."""
        store = ImageLayout(layout)
        manifest = store.read_manifest(digest)
        config = str(manifest["config"]["digest"])
        for part in (manifest["config"], *manifest["layers"]):
            verify_blob(store, part["digest"])
        if self._call("image", "exists", hex_of(config), is_checked=False).returncode == 0:
            return hex_of(config)
        view = self.state / "podman" / "views" / hex_of(digest)
        _write_view(store, digest, view)
        try:
            loaded = self._call("pull", "--quiet", f"oci:{self._link() / 'views' / hex_of(digest)}", is_checked=False)
        finally:
            shutil.rmtree(view, ignore_errors=True)
        if loaded.returncode != 0:
            raise ServingError(f"podman could not load {digest}: {loaded.stderr.strip()}")
        if loaded.stdout.strip().removeprefix("sha256:") != hex_of(config):
            raise ServingError(f"podman loaded {loaded.stdout.strip()} for {digest}, expected {config}")
        return hex_of(config)

    def _read_logs(self, identity: str) -> str:
        found = self._call("logs", identity, is_checked=False)
        return found.stdout + found.stderr

    def _seccomp_flags(self) -> list[str]:
        profile = self._link() / "seccomp.json"
        write_atomically(profile, canonical_json(render_profile()))
        return ["--security-opt", f"seccomp={profile}"]

    def _log_file(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"

    def is_released(self) -> bool:
        """Whether nothing of it is left outside the state folder: then nothing runs, and podman need not be asked."""
        return not self._link_path().is_symlink()

    def _link_path(self) -> Path:
        short = hashlib.sha256(str((self.state / "podman").resolve()).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"mlops-{os.getuid()}-{short}"

    def _link(self) -> Path:
        """A short path to podman's folder: it refuses run roots of more than 50 letters."""
        target = (self.state / "podman").resolve()
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = self._link_path()
        if link.is_symlink() and link.lstat().st_uid == os.getuid() and link.readlink() == target:
            return link
        try:
            link.symlink_to(target)
        except FileExistsError as error:
            if link.is_symlink() and link.lstat().st_uid == os.getuid() and link.readlink() == target:
                return link  # another process was first
            raise EnvironmentFault(f"{link} is in the way and not ours", hint="look at it and remove it") from error
        return link

    def _call(
        self, *arguments: str, is_checked: bool = True, seconds: float = _CALL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        link = self._link()
        stores = [
            *("--root", f"{link}/storage", "--runroot", f"{link}/run"),
            *("--tmpdir", f"{link}/temporary", "--network-config-dir", f"{link}/networks"),
        ]
        # The cache of blob locations goes where rootless podman would put it, else to /var/lib/containers.
        environment = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "HOME": f"{link}/home",
            "XDG_DATA_HOME": f"{link}/data",
            "XDG_CONFIG_HOME": f"{link}/config",
            "_CONTAINERS_ROOTLESS_UID": "65532",
        }
        if os.getuid() != 0:
            stores += ["--storage-driver", "vfs"]
            environment |= {"XDG_RUNTIME_DIR": f"{link}/run"}
            environment.pop("_CONTAINERS_ROOTLESS_UID")
        try:
            found = subprocess.run(
                ["podman", *_COMMON, *stores, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                env=environment,
                cwd="/",
            )
        except FileNotFoundError as error:
            raise EnvironmentFault("podman is not installed", hint=INSTALL) from error
        except subprocess.TimeoutExpired as error:
            raise ServingError(f"podman {arguments[0]} did not end within {seconds:.0f} s") from error
        if is_checked and found.returncode != 0:
            raise ServingError(f"podman {arguments[0]} failed: {found.stderr.strip()}")
        return found


def is_podman_installed() -> bool:
    """Whether podman and runc are there."""
    return shutil.which("podman") is not None and shutil.which("runc") is not None


def _to_instance(label: dict[str, Any], *, identity: str) -> Instance:
    return Instance(
        name=label["name"],
        runtime="podman",
        identity=identity,
        digest=label["digest"],
        socket=Path(label["socket"]),
        tcp_port=label["tcp_port"],
    )


def _limit_flags(request: RunRequest) -> list[str]:
    flags: list[str] = []
    if request.memory_bytes is not None:
        flags += ["--memory", str(request.memory_bytes)]
    if request.pids is not None:
        flags += ["--pids-limit", str(request.pids)]
    if request.cpus is not None:
        flags += ["--cpus", str(request.cpus)]
    return flags


def _network_flags(request: RunRequest) -> list[str]:
    if request.tcp_port is None:
        return ["--network", "none", "--env", "PORT="]
    return ["--network", "host", "--env", f"PORT={request.tcp_port}", "--env", "HOST=127.0.0.1"]


def _mount_flags(request: RunRequest) -> list[str]:
    folder = str(request.socket_folder.resolve())
    if "," in folder:
        raise EnvironmentFault(f"podman cannot mount {folder}: its path has a comma", hint="move the project")
    return ["--mount", f"type=bind,source={folder},destination=/run/mlops"]


def _environment_flags(request: RunRequest) -> list[str]:
    return [flag for name, value in sorted(request.environment.items()) for flag in ("--env", f"{name}={value}")]


def _write_view(store: ImageLayout, digest: str, view: Path) -> None:
    """A layout that holds one image only, without a name: podman can pull it by nothing but its digest."""
    content = store.read_blob(digest)
    entry = {"mediaType": MANIFEST_TYPE, "digest": digest, "size": len(content)}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}
    with folder_aside(view) as folder:
        (folder / "blobs").symlink_to((store.folder / "blobs").resolve())
        (folder / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
        (folder / "index.json").write_bytes(canonical_json(index))
