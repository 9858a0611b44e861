"""Examines the machine around a project: Python, packages, ports, disk, memory, Ray, locks, and what crashes left.

Leaves to others: the project's files (file_examination.py), removing anything (people, `mlops stop`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from mlops.deploy.environment import list_environments, load_environment
from mlops.deploy.proxy_haproxy import Proxy
from mlops.errors import MlopsError
from mlops.places import Places
from mlops.project.diagnosis import Diagnosis
from mlops.project.processes import find_held_locks, find_ray_leftovers
from mlops.provenance.confinement import LANDLOCK, NONE, available_method
from mlops.training.source_check import judge_lock
from mlops.training.source_licences import read_lock

PACKAGES: Mapping[str, tuple[str, str]] = {
    # Debian package: (program, what needs it); kept equal to scripts/system-packages.txt by a test
    "git": ("git", "every release: commits and revisions"),
    "make": ("make", "make release, make test"),
    "python3-venv": ("", "setting up .venv"),
    "openssh-client": ("ssh-keygen", "signed machine commits"),
    "podman": ("podman", "running serving images"),
    "runc": ("runc", "running serving images with podman"),
    "bubblewrap": ("bwrap", "running serving images where podman cannot"),
    "haproxy": ("haproxy", "moving traffic between versions"),
    "wrk": ("wrk", "benchmarks under load"),
    "skopeo": ("skopeo", "tests of images"),
    "umoci": ("umoci", "tests of images"),
    "buildah": ("buildah", "benchmarks of images"),
    "docker-registry": ("docker-registry", "tests of push and pull"),
    "chromium": ("chromium", "tests of the MLflow UI and reports"),
    "postgresql": ("", "tests of the ledger on PostgreSQL"),
}
_NEEDED_BYTES = 1 << 30
_WISHED_BYTES = 6 << 30
_WISHED_MEMORY = 4 << 30
_SCRATCH = re.compile(r"^\.(old-)?.+\.[a-z0-9_]{8}$")  # tempfile.mkdtemp(prefix=f".{name}.")
_DAY_SECONDS = 86_400
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray's object store and torch's tensors lie there


def examine_machine(places: Places | None, *, now_seconds: float) -> tuple[Diagnosis, ...]:
    """What a release, and what comes after it, needs from the machine.

    Args:
        places: The project; None outside of one.
        now_seconds: Time since the epoch, for the age of leftovers.
    """
    found = [_examine_python(), _examine_packages(places), _examine_git_identity(), _examine_memory()]
    found.append(_examine_disk(places.root if places else Path.cwd()))
    found.append(_examine_shared_memory())
    found.append(_examine_confinement())
    if places is not None:
        found.extend(_examine_lock(places))
        found.extend(_examine_ports(places))
        found.extend(_examine_state(places, now_seconds))
    found.extend(find_ray_leftovers(places))
    return tuple(found)


def _examine_python() -> Diagnosis:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.prefix == sys.base_prefix:
        return Diagnosis("Python", "note", f"{version}, not in a virtual environment", hint="make setup")
    return Diagnosis("Python", "fine", f"{version} in {sys.prefix}")


def _examine_packages(places: Places | None) -> Diagnosis:
    missing = [name for name, (program, _) in PACKAGES.items() if not _has_package(name, program)]
    if not missing:
        return Diagnosis("system packages", "fine", "all there")
    items = tuple(f"{name}: needed for {PACKAGES[name][1]}" for name in missing)
    has_script = places is not None and (places.root / "scripts" / "system.sh").exists()
    command = "sudo scripts/system.sh" if has_script else f"sudo apt-get install --yes {' '.join(missing)}"
    status = "broken" if "git" in missing else "note"
    return Diagnosis("system packages", status, f"{len(missing)} missing", items=items, hint=f"run `{command}`")  # type: ignore[arg-type]


def _has_package(name: str, program: str) -> bool:
    if program:
        return shutil.which(program) is not None or Path("/usr/sbin", program).exists()
    if name == "postgresql":
        return any(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or shutil.which("postgres") is not None
    return importlib.util.find_spec("ensurepip") is not None


def _examine_git_identity() -> Diagnosis:
    if shutil.which("git") is None:
        return Diagnosis("git identity", "note", "git is missing")
    names = []
    for field in ("user.name", "user.email"):
        done = subprocess.run(["git", "config", field], capture_output=True, text=True, check=False)
        names.append(done.stdout.strip())
    if all(names):
        return Diagnosis("git identity", "fine", f"{names[0]} <{names[1]}>")
    hint = "git config --global user.name 'Your Name' && git config --global user.email you@example.org"
    text = "not set: your own commits will fail (the machine's carry their own author)"
    return Diagnosis("git identity", "note", text, hint=hint)


def _examine_memory() -> Diagnosis:
    memory = psutil.virtual_memory()
    text = f"{_render_bytes(memory.available)} of {_render_bytes(memory.total)} free, {os.cpu_count()} CPUs"
    if memory.available < _WISHED_MEMORY:
        return Diagnosis("memory", "note", text, hint="a release of `income` needs up to 4 GiB; end other programs")
    return Diagnosis("memory", "fine", text)


def _examine_disk(folder: Path) -> Diagnosis:
    free = shutil.disk_usage(folder).free
    text = f"{_render_bytes(free)} free at {folder}"
    if free < _NEEDED_BYTES:
        return Diagnosis("disk", "broken", text, hint="free at least 1 GiB: nothing can be released on a full disk")
    if free < _WISHED_BYTES:
        return Diagnosis("disk", "note", text, hint="6 GiB are comfortable; `mlops image prune` drops old images")
    return Diagnosis("disk", "fine", text)


def _examine_shared_memory() -> Diagnosis:
    folder = Path(_SHARED_MEMORY)
    if not folder.is_dir():
        return Diagnosis(_SHARED_MEMORY, "note", "does not exist", hint="Ray then keeps its objects on disk, slowly")
    usage = shutil.disk_usage(folder)
    text = f"{_render_bytes(usage.free)} of {_render_bytes(usage.total)} free"
    if usage.free < 128 << 20:
        hint = "remount it larger: `sudo mount -o remount,size=2G /dev/shm`, or remove what dead programs left there"
        return Diagnosis(_SHARED_MEMORY, "note", text, hint=hint)
    return Diagnosis(_SHARED_MEMORY, "fine", text)


def _examine_confinement() -> Diagnosis:
    method = available_method()
    if method == NONE:
        text = "neither Landlock nor bubblewrap: training code could read the signing keys"
        return Diagnosis("confinement", "note", text, hint="sudo apt-get install --yes bubblewrap")
    kept = "from the keys, and from writing to what is not its own" if method == LANDLOCK else "from the keys alone"
    return Diagnosis("confinement", "fine", f"training code is kept {kept}, by {method}")


def _examine_lock(places: Places) -> Iterator[Diagnosis]:
    if not places.lock_file.is_file():
        return  # said with the project's files
    locked = read_lock(places.lock_file.read_text(encoding="utf-8", errors="replace"))
    items = tuple(finding.text for finding in judge_lock(locked, path="") if finding.code == "lock-differs")
    if items:
        hint = "run `make setup`; a release from other versions than the locked ones is refused"
        yield Diagnosis("locked versions", "broken", f"{len(items)} differ", items=items, hint=hint)
    else:
        yield Diagnosis("locked versions", "fine", f"{len(locked)} as locked")


def _examine_ports(places: Places) -> Iterator[Diagnosis]:
    for name in list_environments(places):
        try:
            ports = load_environment(places, name).traffic.ports
        except MlopsError:
            continue  # said with the project's files
        for product, port in ports.items():
            owner = _find_listener(port)
            if owner is None:
                yield Diagnosis(f"port {port}", "fine", f"free for {product} in {name}")
            elif Proxy(places.serving_state / name / product, port, product).find_pid() is not None:
                yield Diagnosis(f"port {port}", "fine", f"{product} in {name} answers there ({owner})")
            else:
                hint = f"end that program, or give {product} another port in deploy/environments/{name}.yaml"
                yield Diagnosis(f"port {port}", "note", f"taken by {owner}, wanted for {product} in {name}", hint=hint)


def _find_listener(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pass
        else:
            return None
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return psutil.Process(connection.pid).name() if connection.pid else "another user's program"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return "another program"


def _examine_state(places: Places, now_seconds: float) -> Iterator[Diagnosis]:
    if not places.state.exists():
        yield Diagnosis(".mlops", "fine", "not there yet: the first command makes it")
        return
    keys = places.keys_folder
    if keys.is_dir() and keys.stat().st_mode & 0o077:
        yield Diagnosis(".mlops/keys", "broken", "others can read it", hint=f"chmod 700 {keys}")
    spooled = sum(path.read_bytes().count(b"\n") for path in (places.mlflow_folder / "spool").glob("*.jsonl"))
    if spooled:
        hint = "the next sweep or release sends them; is the tracking server of MLFLOW_TRACKING_URI up?"
        yield Diagnosis("MLflow", "note", f"{spooled} entries wait until it can be reached", hint=hint)
    scratch = tuple(
        path.relative_to(places.root).as_posix()
        for path in sorted(places.state.glob("**/.*.*"))
        if path.is_dir() and _SCRATCH.match(path.name) and now_seconds - path.stat().st_mtime > _DAY_SECONDS
    )
    if scratch:
        hint = f"remove them: `rm -r {' '.join(scratch[:3])}{' …' if len(scratch) > 3 else ''}`"
        yield Diagnosis("leftovers", "note", f"{len(scratch)} unfinished folders of killed commands", scratch, hint)
    for lock in find_held_locks(places):
        yield Diagnosis(lock.path, "note", f"held by {lock.render_holder()}", hint="wait for it, or end that process")


def _render_bytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
