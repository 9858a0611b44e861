"""Sealing bytes with a key that is shown once: AES-256-GCM, a fresh random key per file, nothing about it is kept.

Leaves to others: what is sealed (mlops/erasure/access.py), how the key reaches whoever may read it.
"""

from __future__ import annotations

import base64
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mlops.errors import ProvenanceError

_MAGIC = b"mlops-sealed-v1\n"
_NONCE_BYTES = 12


def seal(content: bytes) -> tuple[bytes, str]:
    """Sealed bytes, and the key as text."""
    key, nonce = AESGCM.generate_key(256), secrets.token_bytes(_NONCE_BYTES)
    return _MAGIC + nonce + AESGCM(key).encrypt(nonce, content, _MAGIC), base64.b64encode(key).decode()


def unseal(sealed: bytes, key: str) -> bytes:
    """The content again.

    Raises:
        ProvenanceError: Another key, or a byte was changed.
    """
    start = len(_MAGIC)
    try:
        nonce, body = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        if not sealed.startswith(_MAGIC):
            raise ValueError("another kind of file")
        return AESGCM(base64.b64decode(key, validate=True)).decrypt(nonce, body, _MAGIC)
    except (InvalidTag, ValueError) as error:
        raise ProvenanceError("the file cannot be opened: another key, or it was changed") from error
