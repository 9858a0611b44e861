"""The key ring: which public keys count, whose they are, and from when to when.

Leaves to others: where the list comes from (`deploy/roles.yaml`, mlops/deploy/roles.py) and what a role may do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlops.clock import render_time
from mlops.errors import Reason


@dataclass(frozen=True)
class AcceptedKey:
    """One public key and the time in which its signatures count."""

    public: str
    """`ed25519:<base64>`."""
    owner: str
    """Person or machine, for messages."""
    not_before_us: int | None = None
    not_after_us: int | None = None
    """First microsecond at which it no longer counts."""
    is_revoked: bool = False
    """No signature counts, whatever time it claims: who stole the key can write any date."""


class KeyRing:
    """Accepted keys by their public half."""

    def __init__(self, keys: Iterable[AcceptedKey]) -> None:
        self._keys = {key.public: key for key in keys}

    def find_owner(self, public: str) -> str | None:
        """Whose key it is; None when nobody's."""
        key = self._keys.get(public)
        return key.owner if key else None

    def find_objection(self, public: str, *, signed_us: int) -> Reason | None:
        """Why a signature by this key, made at that time, does not count; None when it does."""
        key = self._keys.get(public)
        if key is None:
            return Reason("unknown-key", f"{public} belongs to nobody in deploy/roles.yaml")
        if key.is_revoked:
            return Reason("revoked-key", f"the key {public} of {key.owner} was revoked")
        if key.not_before_us is not None and signed_us < key.not_before_us:
            return Reason(
                "early-key", f"the key {public} of {key.owner} counts from {render_time(key.not_before_us)} on"
            )
        if key.not_after_us is not None and signed_us >= key.not_after_us:
            return Reason("expired-key", f"the key {public} of {key.owner} expired at {render_time(key.not_after_us)}")
        return None
