"""Running images with bubblewrap, root or not: the one door to bwrap. Fulfils `mlops.serving.runtime.Runtime`.

Nothing is remembered but by the kernel: an instance is found again by the command line of its sandbox. Memory, process
and core limits need cgroups, which bubblewrap does not set.
Leaves to others: what should run (reconciler.py), and unpacking (mlops/serving/oci_unpack.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops.deploy.seccomp import open_filter
from mlops.errors import EnvironmentFault, ServingError
from mlops.files import folder_aside, remove_tree, write_atomically
from mlops.provenance.digest import digest_json, hex_of
from mlops.serving.oci_layout import ImageLayout, verify_blob
from mlops.serving.runtime import (
    IMAGE_GROUP_ID,
    IMAGE_USER_ID,
    SOCKET_NAME,
    Instance,
    RunRequest,
    remove_ended_logs,
    require_idle,
    unpack_image,
)

INSTALL = "run `apt-get install bubblewrap`"
_MARK = "MLOPS_INSTANCE"
_MOUNT_POINTS = ("proc", "dev", "tmp", "run/mlops")
_TEMPORARY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class BubblewrapRuntime:
    """bwrap over unpacked images."""

    state: Path
    """`places.serving_state`."""
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Sandboxes that this process started: it must collect their exit."""

    @property
    def name(self) -> str:
        """`bubblewrap`."""
        return "bubblewrap"

    def start(self, request: RunRequest) -> Instance:
        """As `Runtime.start`."""
        if any(instance.name == request.name for instance in self.list_instances()):
            raise ServingError(f"an instance {request.name} is running already", hint="stop it, or use another name")
        command = self._render_command(request, self._prepare_root(request.layout, request.digest))
        request.socket_folder.mkdir(parents=True, exist_ok=True)
        request.socket_folder.chmod(0o777)
        (request.socket_folder / SOCKET_NAME).unlink(missing_ok=True)
        log = self._log_file(request.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        seccomp = open_filter()
        try:
            with log.open("wb") as output:
                child = subprocess.Popen(
                    ["bwrap", "--info-fd", str(writer), "--seccomp", str(seccomp), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writer, seccomp),
                    start_new_session=True,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
                )
        except FileNotFoundError as error:
            raise EnvironmentFault("bubblewrap is not installed", hint=INSTALL) from error
        finally:
            os.close(writer)
            os.close(seccomp)
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
        self._children[child.pid] = child
        if b"child-pid" not in answer:
            child.wait(timeout=5)
            raise ServingError(f"bubblewrap could not start {request.digest[:19]}: {self._tail(log)}")
        return _to_instance(_label(request), child.pid)

    def is_running(self, instance: Instance) -> bool:
        """As `Runtime.is_running`."""
        pid = int(instance.identity.split(":")[0])
        if pid in self._children:
            self._children[pid].poll()
        return _identity(pid) == instance.identity and _state(pid) != "Z"

    def stop(self, instance: Instance, *, timeout_seconds: float) -> int | None:
        """As `Runtime.stop`: the signal goes to the server inside, which is process 1 of the sandbox."""
        pid = int(instance.identity.split(":")[0])
        deadline = time.monotonic() + timeout_seconds
        is_killed = False
        sent: set[int] = set()
        while self.is_running(instance):
            inner = set(_children_of(pid)) or {pid}
            if time.monotonic() > deadline:
                is_killed = True
                _signal(inner | {pid}, signal.SIGKILL)
            else:
                _signal(inner - sent, signal.SIGTERM)
                sent |= inner
            time.sleep(0.02)
        child = self._children.pop(pid, None)
        code = child.wait(timeout=5) if child is not None else None
        return 137 if is_killed else code

    def logs(self, instance: Instance) -> str:
        """As `Runtime.logs`."""
        path = self._log_file(instance.name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def list_instances(self) -> tuple[Instance, ...]:
        """As `Runtime.list_instances`: read from the process table."""
        for child in list(self._children.values()):
            child.poll()
        found: list[Instance] = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and (label := self._read_label(int(folder.name))) is not None:
                found.append(_to_instance(label, int(folder.name)))
        return tuple(sorted(found, key=lambda instance: instance.name))

    def forget_image(self, digest: str, *, layout: Path) -> bool:
        """As `Runtime.forget_image`."""
        running = self.list_instances()
        require_idle(running, digest)
        remove_ended_logs(self.state / "logs", running)
        root = self.state / "roots" / hex_of(digest)
        root.with_suffix(".json").unlink(missing_ok=True)
        return remove_tree(root)

    def _read_label(self, pid: int) -> dict[str, Any] | None:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return None
        if Path(os.fsdecode(words[0])).name != "bwrap" or _MARK.encode() not in words or _state(pid) == "Z":
            return None
        if Path(f"/proc/{_parent_of(pid)}/cmdline").exists() and _is_bwrap(_parent_of(pid)):
            return None  # the inner process before it became the server
        label: dict[str, Any] = json.loads(words[words.index(_MARK.encode()) + 1])
        return label if label["state"] == str(self.state.resolve()) else None

    def _prepare_root(self, layout: Path, digest: str) -> Path:
        """The unpacked image; unpacked anew when anything in it is not as it was unpacked."""
        store = ImageLayout(layout)
        manifest = store.read_manifest(digest)
        for part in (manifest["config"], *manifest["layers"]):
            verify_blob(store, part["digest"])
        root = self.state / "roots" / hex_of(digest)
        record = root.with_suffix(".json")
        if root.is_dir() and record.exists() and json.loads(record.read_text()) == digest_tree(root):
            return root
        with folder_aside(root) as folder:
            unpack_image(layout, digest, folder / "content")
            for name in _MOUNT_POINTS:
                (folder / "content" / name).mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(digest_tree(root)))
        return root

    def _render_command(self, request: RunRequest, root: Path) -> list[str]:
        store = ImageLayout(request.layout)
        config = json.loads(store.read_blob(store.read_manifest(request.digest)["config"]["digest"]))["config"]
        variables = dict(entry.split("=", 1) for entry in config.get("Env") or ())
        variables |= {"PORT": "" if request.tcp_port is None else str(request.tcp_port), "HOST": "127.0.0.1"}
        variables |= request.environment
        label = {**_label(request), "state": str(self.state.resolve())}
        flags = ["--ro-bind", str(root / "content"), "/", "--proc", "/proc", "--dev", "/dev"]
        flags += ["--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp"]  # noqa: S108 - inside the sandbox
        flags += ["--bind", str(request.socket_folder.resolve()), "/run/mlops"]
        flags += ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--new-session"]
        flags += ["--uid", str(IMAGE_USER_ID), "--gid", str(IMAGE_GROUP_ID), "--cap-drop", "ALL", "--clearenv"]
        flags += [] if request.tcp_port is not None else ["--unshare-net"]
        for name, value in variables.items():
            flags += ["--setenv", name, value]
        flags += ["--setenv", _MARK, json.dumps(label, sort_keys=True)]
        flags += ["--chdir", config.get("WorkingDir") or "/"]
        return [*flags, "--", *(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]

    def _log_file(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"

    def _tail(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace").strip()[-500:]


def is_bubblewrap_installed() -> bool:
    """Whether bwrap is there."""
    return shutil.which("bwrap") is not None


def digest_tree(root: Path) -> str:
    """Digest of names, rights, sizes, change times and link targets below a folder: shows that somebody wrote there."""
    found: dict[str, list[Any]] = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        target = str(path.readlink()) if path.is_symlink() else ""
        found[path.relative_to(root).as_posix()] = [state.st_mode, state.st_size, state.st_ctime_ns, target]
        if path.is_dir() and not path.is_symlink():
            found[path.relative_to(root).as_posix()] = [state.st_mode]
    return digest_json(found)


def _label(request: RunRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "digest": request.digest,
        "socket": str(request.socket_folder / SOCKET_NAME),
        "tcp_port": request.tcp_port,
    }


def _to_instance(label: dict[str, Any], pid: int) -> Instance:
    return Instance(
        name=label["name"],
        runtime="bubblewrap",
        identity=_identity(pid) or f"{pid}:gone",
        digest=label["digest"],
        socket=Path(label["socket"]),
        tcp_port=label["tcp_port"],
    )


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, parent, …, start time at index 19."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _identity(pid: int) -> str | None:
    """`pid:start time in clock ticks`: a reused process id does not match."""
    fields = _stat_fields(pid)
    return f"{pid}:{fields[19]}" if fields else None


def _state(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[0] if fields else "Z"


def _parent_of(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else 0


def _is_bwrap(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "bwrap"
    return False


def _children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
