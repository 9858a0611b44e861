"""Signed claims: who spends, in which budget, until when; a shared ledger otherwise knows only a claimed name.

Ed25519 over canonical JSON; public keys stand in the budget file. Leaves to others: keeping private keys
(mlops/provenance).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mlops.budgets.tree import BudgetNode
from mlops.errors import Reason


def make_claim(*, budget: str, person: str, until_us: int, sign: Callable[[bytes], bytes]) -> str:
    """A claim that `person` spends from `budget` until a time; `sign` makes an Ed25519 signature."""
    payload = json.dumps({"budget": budget, "person": person, "until_us": until_us}, sort_keys=True).encode()
    return f"{base64.b64encode(payload).decode()}.{base64.b64encode(sign(payload)).decode()}"


def check_spender(path: Sequence[BudgetNode], *, person: str, claim: str, now_us: int) -> tuple[Reason, ...]:
    """Grounds why `person` may not spend from the first budget of `path`; every budget on it is asked."""
    found: list[Reason] = []
    for node in path:
        spenders = {spender.person: spender for spender in node.spenders}
        if spenders and person not in spenders:
            known = ", ".join(sorted(spenders))
            text = f"{person or 'nobody named'} may not spend from {node.name}; its spenders: {known}"
            found.append(Reason("not-a-spender", text))
        elif node.needs_signature:
            problem = _check_claim(
                claim, key=spenders[person].public_key, budget=path[0].name, person=person, now_us=now_us
            )
            if problem:
                found.append(Reason("claim-invalid", f"{node.name} asks for a signed claim of {person}: {problem}"))
    return tuple(found)


def _check_claim(claim: str, *, key: str, budget: str, person: str, now_us: int) -> str:
    if not claim:
        return "none was given; sign one with `mlops sweep launch --sign`"
    try:
        payload, signature = (base64.b64decode(part, validate=True) for part in claim.split("."))
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix("ed25519:"))).verify(signature, payload)
        content = json.loads(payload)
    except (ValueError, binascii.Error):
        return "it is not a claim"
    except InvalidSignature:
        return "the signature is not made by the key in the budget file"
    if content.get("budget") != budget or content.get("person") != person:
        return f"it is made for {content.get('person')} and {content.get('budget')}"
    if content.get("until_us", 0) < now_us:
        return "it has expired"
    return ""
