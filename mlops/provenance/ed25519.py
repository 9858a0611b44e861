"""Ed25519 (RFC 8032) keys and signatures. Public keys are written `ed25519:<base64 of 32 bytes>` everywhere.

Leaves to others: files of keys (keys.py), envelopes (dsse.py), whose keys count (keyring.py).
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mlops.errors import ProvenanceError

_PUBLIC_PREFIX = "ed25519:"


@dataclass(frozen=True)
class SigningKey:
    """A private key that can sign, with the public key it goes by."""

    name: str
    public: str
    """`ed25519:<base64>`."""
    made_us: int
    """When it was made, by this machine's clock."""
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """64 bytes of Ed25519 signature (RFC 8032): the same message gives the same bytes."""
        return self._private.sign(message)


def render_public_key(key: Ed25519PublicKey) -> str:
    """`ed25519:<base64>`."""
    return render_raw_public_key(key.public_bytes_raw())


def render_raw_public_key(raw: bytes) -> str:
    """32 bytes to `ed25519:<base64>`."""
    return _PUBLIC_PREFIX + base64.b64encode(raw).decode()


def parse_public_key(text: str) -> Ed25519PublicKey:
    """`ed25519:<base64>` to a key.

    Raises:
        ProvenanceError: Not of that form; a second spelling of the same bytes is refused too.
    """
    try:
        raw = base64.b64decode(text.removeprefix(_PUBLIC_PREFIX), validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error) as error:
        raise ProvenanceError(
            f"{text!r} is not a public key", hint="write ed25519:<base64 of 32 bytes>, as `mlops keys list` prints it"
        ) from error
    if render_public_key(key) != text:
        raise ProvenanceError(f"{text!r} is not the canonical spelling of a public key", hint=render_public_key(key))
    return key


def is_signed_by(public: str, *, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made with the private half of `public`."""
    try:
        parse_public_key(public).verify(signature, message)
    except (InvalidSignature, ProvenanceError):
        return False
    return True
