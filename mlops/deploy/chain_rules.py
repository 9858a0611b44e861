"""What a release's chain is held against: whose signatures count here, and where every artefact lies.

Leaves to others: checking (mlops/provenance/verify.py) and what a broken chain leads to (promotion, reconcile, audit).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from mlops.clock import SECOND_US
from mlops.datasets.chain_loader import load_manifest_bytes
from mlops.deploy.roles import load_roles
from mlops.errors import ProjectError
from mlops.places import Places
from mlops.provenance.artefacts import load_source, project_loaders
from mlops.provenance.digest import digest_json
from mlops.provenance.keyring import AcceptedKey, KeyRing
from mlops.provenance.keys import MACHINE, key_file, load_key
from mlops.provenance.sql_steps import StepRecord
from mlops.provenance.verify import ChainRules, FoundBytes
from mlops.serving.deploy_spec import DeploySpec
from mlops.specs import parse_spec
from mlops.training.spec import SweepSpec

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
        loaders={
            **project_loaders(places),
            "manifest": partial(load_manifest_bytes, places),
            "spec": partial(_load_spec, places),
            "deploy_spec": partial(
                load_source, places, "deploy/{product}.yaml", digest_content=_parsed(_digest_deploy_spec)
            ),
        },
        required_kinds=required_kinds,
        erased=erased or {},
    )


def _load_spec(places: Places, step: StepRecord, digest: str) -> FoundBytes:
    """The source check digests the sweep spec's file, the sweep what stands in it."""
    pattern = "training/{product}.yaml"
    if step.kind == "sweep":
        return load_source(places, pattern, step, digest, digest_content=_parsed(_digest_sweep_spec))
    return load_source(places, pattern, step, digest)


def _parsed(digest: Callable[[str], str]) -> Callable[[bytes], str]:
    """An old file that this mlops does not understand has no digest."""

    def digest_content(content: bytes) -> str:
        try:
            return digest(content.decode())
        except (ProjectError, UnicodeDecodeError):
            return ""

    return digest_content


def _digest_sweep_spec(text: str) -> str:
    return digest_json(parse_spec(text, SweepSpec, source="training").to_json())


def _digest_deploy_spec(text: str) -> str:
    return digest_json(parse_spec(text, DeploySpec, source="deploy").image.model_dump(mode="json"))
