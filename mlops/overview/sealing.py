"""A sealed stream: whoever lacks the passphrase reads nothing, and a byte changed, moved, cut off or added is seen.

Chunks of 1 MiB under AES-256-GCM with a counter and an end mark in the nonce (the STREAM construction of Hoang,
Reyhanitabar, Rogaway & Vizár 2015); the key comes from the passphrase by scrypt (RFC 7914) with a salt per file.
Leaves to others: what stands in the stream (backup.py, restore.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import IO, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mlops.errors import ProjectError

MAGIC = b"mlops-backup\n"
VERSION = 1
CHUNK_BYTES = 1 << 20
SHORTEST_PASSPHRASE = 12
_TAG_BYTES = 16
_LONGEST_HEADER = 4_096
_SCRYPT = {"n": 1 << 16, "r": 8, "p": 1}
_MOST_SCRYPT = {"n": 1 << 20, "r": 32, "p": 16}
_RESTORE_HINT = "take another copy of the backup"


@dataclass
class SealingWriter:
    """A writable stream; `close` writes the end mark, without which the file counts as cut off."""

    target: IO[bytes]
    passphrase: str = field(repr=False)
    _buffer: bytearray = field(default_factory=bytearray, repr=False)
    _counter: int = 0

    def __post_init__(self) -> None:
        if len(self.passphrase) < SHORTEST_PASSPHRASE:
            raise ProjectError(
                f"the passphrase has fewer than {SHORTEST_PASSPHRASE} letters", hint="private keys lie in a backup"
            )
        salt = os.urandom(16)
        key, check = _derive(self.passphrase, salt=salt, cost=_SCRYPT)
        header = {"version": VERSION, "salt": salt.hex(), "check": check, **_SCRYPT}
        self._header = MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
        self._cipher = AESGCM(key)
        self.target.write(self._header)

    def write(self, content: bytes) -> int:
        """Take more bytes."""
        self._buffer += content
        while len(self._buffer) > CHUNK_BYTES:  # one chunk stays back: the last one is marked
            self._write_chunk(bytes(self._buffer[:CHUNK_BYTES]), is_last=False)
            del self._buffer[:CHUNK_BYTES]
        return len(content)

    def close(self) -> None:
        """Write the last chunk; the target stays open."""
        self._write_chunk(bytes(self._buffer), is_last=True)
        self._buffer.clear()

    def _write_chunk(self, content: bytes, *, is_last: bool) -> None:
        self.target.write(self._cipher.encrypt(_nonce(self._counter, is_last=is_last), content, self._header))
        self._counter += 1


class OpeningReader:
    """A readable stream over what `SealingWriter` wrote; reading to the end proves that all of it is there.

    Args:
        source: The sealed file.
        passphrase: As it was given when it was sealed.
        name: Of the file, for messages.

    Raises:
        ProjectError: Not a backup, one of a newer mlops, or another passphrase; later also: changed or cut off.
    """

    def __init__(self, source: IO[bytes], passphrase: str, *, name: str) -> None:
        self._source, self._name = source, name
        header, self._header = _read_header(source, name)
        key, check = _derive(passphrase, salt=bytes.fromhex(header["salt"]), cost=header)
        if check != header["check"]:
            raise ProjectError(f"the passphrase does not open {name}", hint="it is the one given to `mlops backup`")
        self._cipher = AESGCM(key)
        self._counter = 0
        self._ahead = source.read(CHUNK_BYTES + _TAG_BYTES)
        self._opened = b""
        self._is_ended = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none at the end."""
        pieces = [self._opened]
        length = len(self._opened)
        while not self._is_ended and (size < 0 or length < size):
            pieces.append(self._open_chunk())
            length += len(pieces[-1])
        content = b"".join(pieces)
        cut = len(content) if size < 0 else size
        self._opened = content[cut:]
        return content[:cut]

    def _open_chunk(self) -> bytes:
        sealed, self._ahead = self._ahead, self._source.read(CHUNK_BYTES + _TAG_BYTES)
        self._is_ended = not self._ahead
        try:
            opened = self._cipher.decrypt(_nonce(self._counter, is_last=self._is_ended), sealed, self._header)
        except InvalidTag as error:
            raise ProjectError(
                f"{self._name} was changed or cut off near byte {self._counter * CHUNK_BYTES}: nothing was restored",
                hint=_RESTORE_HINT,
            ) from error
        self._counter += 1
        return opened


def _nonce(counter: int, *, is_last: bool) -> bytes:
    return struct.pack(">3xQ?", counter, is_last)


def _derive(passphrase: str, *, salt: bytes, cost: dict[str, Any]) -> tuple[bytes, str]:
    """Key, and what tells a wrong passphrase from a changed file."""
    made = Scrypt(salt=salt, length=64, n=cost["n"], r=cost["r"], p=cost["p"]).derive(passphrase.encode())
    return made[:32], hashlib.sha256(made[32:]).hexdigest()[:32]


def _read_header(source: IO[bytes], name: str) -> tuple[dict[str, Any], bytes]:
    magic = source.read(len(MAGIC))
    line = source.readline(_LONGEST_HEADER)
    try:
        if magic != MAGIC:
            raise ValueError("it does not begin as one")
        header: dict[str, Any] = json.loads(line)
        if int(header["version"]) > VERSION:
            raise ProjectError(f"{name} was written by a newer mlops", hint="restore it with that one")
        if any(not 1 <= int(header[cost]) <= most for cost, most in _MOST_SCRYPT.items()):
            raise ValueError("its cost parameters are out of bounds")
        bytes.fromhex(header["salt"])
        str(header["check"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProjectError(
            f"{name} is no backup of mlops, or its beginning was changed: {error}", hint=_RESTORE_HINT
        ) from error
    return header, magic + line
