"""Who may do what: `deploy/roles.yaml` gives people and machines their keys and roles.

A person is counted once, however many keys they have; a public key belongs to one person only.
Leaves to others: private keys and signatures (mlops/provenance), what a role is needed for (environment.py).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mlops.clock import SECOND_US
from mlops.errors import ProvenanceError
from mlops.places import Places
from mlops.provenance.ed25519 import parse_public_key
from mlops.specs import Spec, load_spec


class KeyEntry(Spec):
    """One public key; may be written as just the key."""

    public: str
    """`ed25519:<base64>`, as `mlops keys list` prints it."""
    until: date | None = None
    """First day (UTC) on which it no longer counts; what a machine signed before stays valid."""
    revoked: bool = False
    """Lost or stolen: nothing it ever signed counts, since a thief can write any date."""

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return {"public": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> KeyEntry:
        try:
            parse_public_key(self.public)
        except ProvenanceError as error:
            raise ValueError(error.message) from error
        return self

    def is_valid_at(self, now_us: int) -> bool:
        """Whether it counts at that time."""
        if self.revoked:
            return False
        if self.until is None:
            return True
        end = datetime(self.until.year, self.until.month, self.until.day, tzinfo=UTC)
        return now_us < int(end.timestamp()) * SECOND_US


class PersonSpec(Spec):
    """One person."""

    emails: tuple[str, ...] = ()
    """Addresses of their commits, so that an author is recognised."""
    keys: tuple[KeyEntry, ...] = ()
    roles: tuple[str, ...] = ()


class MachineSpec(Spec):
    """One machine whose attestations count besides this machine's own."""

    keys: tuple[KeyEntry, ...] = Field(min_length=1)


class RolesSpec(Spec):
    """The whole file."""

    version: Literal[1]
    people: dict[str, PersonSpec] = Field(default_factory=dict)
    machines: dict[str, MachineSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> RolesSpec:
        owners: dict[str, str] = {}
        for owner, public in self._owned_keys():
            if owners.setdefault(public, owner) != owner:
                raise ValueError(f"{owner} and {owners[public]} have the same key {public}; a key has one owner")
        emails: dict[str, str] = {}
        for name, person in self.people.items():
            for email in person.emails:
                if emails.setdefault(email.lower(), name) != name:
                    raise ValueError(f"{name} and {emails[email.lower()]} have the same address {email}")
        return self

    def _owned_keys(self) -> list[tuple[str, str]]:
        people = [(name, key.public) for name, person in self.people.items() for key in person.keys]
        return people + [
            (f"machine {name}", key.public) for name, machine in self.machines.items() for key in machine.keys
        ]

    def person_of_key(self, public: str) -> tuple[str, KeyEntry] | None:
        """Whose key it is."""
        for name, person in self.people.items():
            for key in person.keys:
                if key.public == public:
                    return name, key
        return None

    def person_of_author(self, author: str) -> str:
        """Name of the person with that commit address; the address itself when nobody has it."""
        for name, person in self.people.items():
            if author == name or author.lower() in {email.lower() for email in person.emails}:
                return name
        return author

    def machine_keys(self, *, now_us: int) -> frozenset[str]:
        """Public keys of machines that count now."""
        return frozenset(
            key.public for machine in self.machines.values() for key in machine.keys if key.is_valid_at(now_us)
        )


def roles_file(places: Places) -> Path:
    """Where roles stand."""
    return places.root / "deploy" / "roles.yaml"


def load_roles(places: Places) -> RolesSpec:
    """Everybody's roles and keys; nobody's when there is no file.

    Raises:
        ProjectError: The file has problems (all named).
    """
    path = roles_file(places)
    return load_spec(path, RolesSpec) if path.exists() else RolesSpec(version=1)
