"""Signing keys of this machine and of people: Ed25519, PKCS8 PEM, one file each, made once even by two processes.

Leaves to others: which key may sign what (keyring.py, mlops/deploy), hiding the folder from trainers (confinement.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlops.clock import Clock
from mlops.errors import EnvironmentFault, ProvenanceError
from mlops.provenance import dsse, statement
from mlops.provenance.ed25519 import SigningKey, render_public_key
from mlops.provenance.sql_steps import StepRecord

MACHINE = "machine"
"""Name of the machine's own key file."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOO_OPEN = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class MachineSigner:
    """Signs finished steps with the machine's key; satisfies `mlops.provenance.steps.Signer`."""

    key: SigningKey

    def sign_step(self, record: StepRecord) -> str:
        """The step's in-toto statement in a DSSE envelope, as JSON text."""
        payload = statement.render_statement(record)
        return dsse.sign_envelope(payload, payload_type=dsse.IN_TOTO_TYPE, keys=(self.key,))


def load_machine_signer(keys_folder: Path, *, clock: Clock) -> MachineSigner:
    """The machine's signer; its key is made on first use.

    Raises:
        ProvenanceError: as `make_key`.
        EnvironmentFault: The folder cannot be written.
    """
    return MachineSigner(make_key(keys_folder, MACHINE, clock=clock))


def key_file(keys_folder: Path, name: str) -> Path:
    """Where a key lies.

    Raises:
        ProvenanceError: The name cannot be a file name.
    """
    if not _NAME.fullmatch(name):
        raise ProvenanceError(
            f"{name!r} cannot name a key",
            hint="use letters, digits and . _ @ - (at most 64), starting with one of the former",
        )
    return keys_folder / f"{name}.pem"


def make_key(keys_folder: Path, name: str, *, clock: Clock) -> SigningKey:
    """The key of that name, made if there is none; of two processes that make it at once both get the same.

    Raises:
        ProvenanceError: The file is there and is no usable key, or others may read it.
        EnvironmentFault: The folder cannot be written.
    """
    path = key_file(keys_folder, name)
    if not path.exists():
        _write_new_key(path, clock=clock)
    return load_key(keys_folder, name)


def load_key(keys_folder: Path, name: str) -> SigningKey:
    """A key made earlier.

    Raises:
        ProvenanceError: There is none, it is no Ed25519 key in PEM, or other users may read it.
    """
    path = key_file(keys_folder, name)
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            content = stream.read()
    except FileNotFoundError as error:
        flag = "" if name == MACHINE else f" --person {name}"
        raise ProvenanceError(f"no key {path}", hint=f"make it with `mlops keys init{flag}`") from error
    except OSError as error:
        raise ProvenanceError(f"key {path} cannot be read: {error.strerror}") from error
    if state.st_mode & _TOO_OPEN:
        raise ProvenanceError(
            f"key {path} can be read by other users (mode {stat.S_IMODE(state.st_mode):04o})",
            hint=f"run `chmod 600 {path}`, or make a new key if someone may have copied it",
        )
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProvenanceError(
            f"{path} is not a private key in PEM", hint="restore it from a backup, or move it away and make a new one"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ProvenanceError(f"{path} is not an Ed25519 key", hint="move it away and make a new one")
    return SigningKey(name, render_public_key(private.public_key()), state.st_mtime_ns // 1_000, private)


def list_keys(keys_folder: Path) -> tuple[SigningKey, ...]:
    """Every key of the folder, by name.

    Raises:
        ProvenanceError: as `load_key`.
    """
    return tuple(load_key(keys_folder, path.stem) for path in sorted(keys_folder.glob("*.pem")) if path.name[0] != ".")


def _write_new_key(path: Path, *, clock: Clock) -> None:
    """Write aside with mode 0600, then link: linking fails when another process was first, and its key stays."""
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.chmod(0o700)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(content)
            stream.flush()
            os.utime(stream.fileno(), ns=(clock.now_us() * 1_000, clock.now_us() * 1_000))
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(aside, path)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {path}: {error.strerror}", hint="free disk space or fix rights"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
