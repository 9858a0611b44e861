"""`mlops keys`: make and list signing keys."""

from __future__ import annotations

import socket

import click

from mlops.cli.rendering import emit_json, render_table
from mlops.errors import ProjectError


@click.group()
def keys() -> None:
    """Make and list signing keys (Ed25519, in .mlops/keys)."""


@keys.command()
@click.option("--person", metavar="NAME", help="Also make the key of a person who approves.")
@click.option("--email", "emails", multiple=True, help="Address of the person's commits; authors cannot approve alone.")
@click.option("--role", "roles", multiple=True, help="Role of a new person [default: approver].")
@click.option("--machine", metavar="NAME", default=None, help="This machine's name in roles.yaml [default: host name].")
@click.option("--dry-run", is_flag=True, help="Say what would be made and written.")
@click.option("--json", "as_json", is_flag=True, help="Print the public keys as JSON.")
def init(
    *,
    person: str | None,
    emails: tuple[str, ...],
    roles: tuple[str, ...],
    machine: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make this machine's key, and a person's; enter their public halves into deploy/roles.yaml."""
    from mlops.overview.key_entry import KeyEntry, enter_keys, require_same_person  # here: --help needs none of it
    from mlops.project.opening import open_project
    from mlops.provenance.keys import MACHINE, key_file, make_key

    project = open_project()
    if person == MACHINE:
        raise ProjectError(f"a person cannot be called {MACHINE!r}: that is this machine's key", hint="choose a name")
    path = project.places.root / "deploy" / "roles.yaml"
    if person:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        require_same_person(text, person, roles=roles, emails=emails)
    folder = project.places.keys_folder
    names = [MACHINE, *([person] if person else [])]
    if dry_run:
        for name in names:
            verb = "keep" if key_file(folder, name).exists() else "make"
            click.echo(f"would {verb} {key_file(folder, name)} and enter it into deploy/roles.yaml")
        return
    made = {name: make_key(folder, name, clock=project.clock).public for name in names}
    entries = [KeyEntry("machines", machine or socket.gethostname(), made[MACHINE])]
    if person:
        entries.append(KeyEntry("people", person, made[person], roles=roles or ("approver",), emails=emails))
    is_changed = enter_keys(path, entries, lock=project.places.state / "roles.lock")
    if as_json:
        emit_json({"keys": made, "is_roles_file_changed": is_changed})
        return
    click.echo(render_table(("key", "public half"), made.items()))
    click.echo("entered into deploy/roles.yaml: review and commit it" if is_changed else "deploy/roles.yaml has them")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(*, as_json: bool) -> None:
    """The keys of this machine, and what deploy/roles.yaml says of them."""
    from mlops.clock import render_time
    from mlops.deploy.roles import load_roles
    from mlops.project.opening import open_project
    from mlops.provenance.keys import list_keys

    project = open_project()
    spec = load_roles(project.places)
    now_us = project.clock.now_us()
    rows = []
    for key in list_keys(project.places.keys_folder):
        owner = spec.person_of_key(key.public)
        machine = key.public in spec.machine_keys(now_us=now_us)
        if owner is not None:
            state = f"{owner[0]}: {', '.join(spec.people[owner[0]].roles) or 'no role'}"
            state += "" if owner[1].is_valid_at(now_us) else " (no longer valid)"
        else:
            state = "a machine" if machine else "nobody: enter it with `mlops keys init`"
        rows.append({"name": key.name, "public": key.public, "made": render_time(key.made_us), "in_roles": state})
    if as_json:
        emit_json(rows)
        return
    click.echo(render_table(("key", "public half", "made", "in roles.yaml"), (tuple(row.values()) for row in rows)))
