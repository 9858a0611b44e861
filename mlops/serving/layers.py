"""Which files each layer of a serving image holds, and which of their packages' files are left out.

Leaves to others: fetching packages (debian_packages.py, python_wheels.py), tar and digests (oci_tar.py).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from mlops.provenance.digest import canonical_json
from mlops.serving.content_store import ContentStore
from mlops.serving.debian_packages import DebFile, DebianPackage, parse_control
from mlops.serving.oci_tar import Entry, entries_of_folder, file_entry, link_entry
from mlops.serving.python_wheels import LockedWheel, wheel_members
from mlops.serving.runtime import IMAGE_GROUP_ID, IMAGE_USER_ID

SITE_PACKAGES = "opt/mlops/lib"
CUDA = "opt/mlops/cuda"
"""Before SITE_PACKAGES on the path: its onnxruntime is taken instead of the one for processors."""
TORCH = "opt/mlops/torch"
"""After SITE_PACKAGES on the path."""
APP = "opt/mlops/app"
MODELS = "opt/mlops/models"
SERVER_PACKAGE = "mlops_server"
"""Name of `mlops/serving/server/` inside the image, where nothing else of `mlops` exists."""

_MERGED = ("bin", "sbin", "lib", "lib64")
_STDLIB = "usr/lib/python3.11"
_LEFT_OUT_OF_BASE = (
    "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/info", "usr/share/menu",
    "usr/share/binfmts", "usr/share/applications", "usr/share/pixmaps", "usr/share/python3", "usr/share/gdb",
    "usr/share/gcc", "usr/share/base-files", "usr/share/libc-bin", "usr/games", "usr/local", "usr/src", "usr/include",
    "usr/sbin", "usr/lib/mime", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit",
    "usr/lib/x86_64-linux-gnu/engines-3", "usr/lib/x86_64-linux-gnu/ossl-modules",
    "var/backups", "var/cache", "var/local", "var/mail", "var/opt", "var/spool", "var/lib/misc", "var/lib/python",
    "boot", "home", "media", "mnt", "srv", "dev", "proc", "sys", "root", "etc/python3", "etc/skel", "etc/profile.d",
    "etc/update-motd.d", "etc/dpkg", "etc/ld.so.conf.d", "etc/cron.d", "etc/init.d", "etc/default", "etc/xattr.conf",
    *(f"{_STDLIB}/{name}" for name in (
        "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo", "turtle.py", "test", "ensurepip", "distutils",
        "venv", "curses", "dbm", "sqlite3", "wsgiref", "xmlrpc", "dist-packages",
    )),
)  # fmt: skip
_LEFT_OUT_MODULES = (
    "_bz2test", "_ctypes_test", "_curses", "_curses_panel", "_dbm", "_gdbm", "_sqlite3", "_testbuffer", "_testcapi",
    "_testclinic", "_testimportmultiple", "_testinternalcapi", "_testmultiphase", "_tkinter", "_xxtestfuzz", "nis",
    "ossaudiodev", "readline", "xxlimited", "xxlimited_35",
)  # fmt: skip
"""Extension modules whose libraries are not in the image, or that only test the interpreter."""
_KEPT_PROGRAMS = ("usr/bin/python3.11",)
_LEFT_OUT_OF_WHEELS = (
    "onnxruntime/transformers", "onnxruntime/tools", "onnxruntime/quantization", "onnxruntime/datasets",
    "onnxruntime/backend", "numpy/f2py", "numpy/tests", "numpy/distutils", "numpy/_core/include", "numpy/_core/lib",
    "numpy/random/lib", "numpy/random/_examples", "numpy/_pyinstaller",
    "google/protobuf/compiler", "numpy/typing", "torch/include", "torch/share", "torch/bin", "torch/test",
)  # fmt: skip
_KEPT_OF_WHEELS = ("torch/bin/torch_shm_manager",)
"""torch does not load without the file, which only its data loaders would run; the image has no right to run it."""
_LEFT_OUT_NAMES = ("tests", "testing_data", "__pycache__")
_LEFT_OUT_SUFFIXES = (".pyi", ".pyx", ".pxd", ".pxi", ".h", ".c", ".cpp", ".a", ".lib", ".exe", ".dll")


def base_entries(packages: tuple[DebianPackage, ...], *, store: ContentStore) -> dict[str, Entry]:
    """Debian's C library, C++ runtime and Python, without programs but Python; users; `status.d` for scanners."""
    entries: dict[str, Entry] = {name: link_entry(f"usr/{name}") for name in _MERGED}
    for package in packages:
        deb = DebFile(store.verify(package.digest))
        control = deb.control()
        name = parse_control(control)["Package"]
        entries[f"var/lib/dpkg/status.d/{name}"] = file_entry(control)
        for tar, member in deb.files():
            path = _merged_path(member.name)
            if not _belongs_in_base(path):
                continue
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                entries[path] = file_entry(content.read(), is_executable=bool(member.mode & 0o100))
            elif member.issym():
                entries[path] = link_entry(member.linkname)
            elif member.islnk():
                entries[path] = entries[_merged_path(member.linkname)]
    return {**_without_dead_links(entries), **_system_entries()}


def wheel_entries(
    wheels: tuple[LockedWheel, ...], *, store: ContentStore, folder: str = SITE_PACKAGES
) -> dict[str, Entry]:
    """Wheels unzipped to one folder, without tests, headers and tools."""
    entries: dict[str, Entry] = {}
    for wheel in wheels:
        path = store.verify(wheel.digest)
        # Opened once: reading the directory of torch's wheel takes longer than reading most of its files.
        archive = zipfile.ZipFile(path)
        for member, name in wheel_members(path):
            if belongs_in_runtime(name):
                entries[f"{folder}/{name}"] = Entry(kind="file", content=_zip_reader(archive, member))
    return entries


def app_entries() -> dict[str, Entry]:
    """The server's own source."""
    folder = Path(__file__).with_name("server")
    return entries_of_folder(folder, prefix=f"{APP}/{SERVER_PACKAGE}", pattern="**/*.py")


def model_entries(
    *,
    product: str,
    version: str,
    model: Mapping[str, bytes],
    contract: bytes,
    golden: bytes,
    evidence: Mapping[str, str],
) -> dict[str, Entry]:
    """One version of one product: what is asked of the server, how, and where it came from."""
    folder = f"{MODELS}/{product}/{version}"
    return {
        **{f"{folder}/{name}": file_entry(content) for name, content in model.items()},
        f"{folder}/contract.json": file_entry(canonical_json(json.loads(contract))),
        f"{folder}/golden.json": file_entry(golden),
        f"{folder}/evidence.json": file_entry(canonical_json(dict(evidence))),
    }


def belongs_in_runtime(name: str) -> bool:
    """Whether a file of a wheel is needed to serve."""
    path = PurePosixPath(name)
    if name in _KEPT_OF_WHEELS:
        return True
    if any(name == part or name.startswith(f"{part}/") for part in _LEFT_OUT_OF_WHEELS):
        return False
    if any(part in _LEFT_OUT_NAMES for part in path.parts):
        return False
    return path.suffix not in _LEFT_OUT_SUFFIXES


def _belongs_in_base(path: str) -> bool:
    if any(path == part or path.startswith(f"{part}/") for part in _LEFT_OUT_OF_BASE):
        return False
    parts = PurePosixPath(path)
    if path.startswith("usr/bin/"):
        return path in _KEPT_PROGRAMS
    if path.startswith("usr/share/doc/"):
        return parts.name == "copyright" or len(parts.parts) == 4  # some packages link to another one's folder
    if parts.parent.name == "lib-dynload":
        return parts.name.split(".")[0] not in _LEFT_OUT_MODULES
    return "__pycache__" not in parts.parts and path not in _MERGED


def _merged_path(name: str) -> str:
    """`./lib/x` of a package to `usr/lib/x`: the image has one `/usr`, as Debian installs it today."""
    path = name.removeprefix("./").strip("/")
    head = path.split("/", 1)[0]
    return f"usr/{path}" if head in _MERGED else path


def _without_dead_links(entries: dict[str, Entry]) -> dict[str, Entry]:
    """Links whose target was left out would only puzzle scanners."""

    def is_alive(name: str, entry: Entry) -> bool:
        if entry.kind != "link" or name in _MERGED:
            return True
        base = "" if entry.target.startswith("/") else str(PurePosixPath(name).parent)
        parts: list[str] = []
        for part in PurePosixPath(base, entry.target.lstrip("/")).parts:
            if part == "..":
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        target = _merged_path("/".join(parts))
        return target in entries or any(other.startswith(f"{target}/") for other in entries)

    return {name: entry for name, entry in entries.items() if is_alive(name, entry)}


def _system_entries() -> dict[str, Entry]:
    user, group = IMAGE_USER_ID, IMAGE_GROUP_ID
    return {
        "etc/passwd": file_entry(
            f"root:x:0:0:root:/nonexistent:/nonexistent\nserver:x:{user}:{group}:server:/nonexistent:/nonexistent\n".encode()
        ),
        "etc/group": file_entry(f"root:x:0:\nserver:x:{group}:\n".encode()),
        "etc/hosts": file_entry(b"127.0.0.1 localhost\n"),
        "etc/nsswitch.conf": file_entry(b"passwd: files\ngroup: files\nhosts: files dns\n"),
        "tmp": Entry(kind="folder", mode=0o1777),
        "proc": Entry(kind="folder"),
        "sys": Entry(kind="folder"),
        "dev": Entry(kind="folder"),
        "run/mlops": Entry(kind="folder", owner=user),
    }


def _zip_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: archive.read(member)
