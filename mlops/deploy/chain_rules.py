"""What a release's chain is held against: whose signatures count here, and where every artefact lies.

Leaves to others: checking (mlops/provenance/verify.py) and what a broken chain leads to (promotion, reconcile, audit).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial

from mlops.clock import SECOND_US
from mlops.datasets.chain_loader import load_manifest_bytes
from mlops.deploy.roles import load_roles
from mlops.places import Places
from mlops.provenance.artefacts import project_loaders
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import MACHINE, key_file, load_key
from mlops.provenance.verify import ChainRules

RELEASE_KINDS = frozenset({"dataset-import", "sweep", "export", "gate", "registration", "image"})
"""Steps without which an image has no complete chain."""


def load_machine_keyring(places: Places) -> KeyRing:
    """Keys whose attestations count: this machine's own, and those of `machines` in `deploy/roles.yaml`.

    An entry for this machine's own key in the file goes before, so that it can be ended there.

    Raises:
        ProjectError: `deploy/roles.yaml` has problems.
        ProvenanceError: This machine's key is damaged.
    """
    keys: dict[str, AcceptedKey] = {}
    if key_file(places.keys_folder, MACHINE).exists():
        own = load_key(places.keys_folder, MACHINE).public
        keys[own] = AcceptedKey(own, "this machine")
    for name, machine in load_roles(places).machines.items():
        for entry in machine.keys:
            end = entry.until
            end_us = int(datetime(end.year, end.month, end.day, tzinfo=UTC).timestamp()) * SECOND_US if end else None
            keys[entry.public] = AcceptedKey(
                entry.public, f"machine {name}", not_after_us=end_us, is_revoked=entry.revoked
            )
    return KeyRing(keys.values())


def load_chain_rules(
    places: Places,
    *,
    required_kinds: frozenset[str] = frozenset(),
    erased: Mapping[str, str] | None = None,
) -> ChainRules:
    """Keys and loaders of a project.

    Args:
        places: The project.
        required_kinds: Steps that the chain must contain; `RELEASE_KINDS` for what may be served.
        erased: Digest to the certificate under which it was purged.

    Raises:
        ProjectError, ProvenanceError: as `load_machine_keyring`.
    """
    return ChainRules(
        keyring=load_machine_keyring(places),
        loaders={**project_loaders(places), "manifest": partial(load_manifest_bytes, places)},
        required_kinds=required_kinds,
        erased=erased or {},
    )
