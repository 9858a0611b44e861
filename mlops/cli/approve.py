"""`mlops approve`: a person signs that a version may enter an environment. Leaves counting to others (mlops/deploy)."""

from __future__ import annotations

from pathlib import Path

import click

from mlops.errors import ProvenanceError


@click.command()
@click.argument("reference")
@click.option("--env", "environment", required=True, help="Environment the approval is for.")
@click.option("--reason", required=True, help="What you looked at and why you say yes.")
@click.option("--key", "person", help="Whose key signs; needed when several people's keys lie here.")
@click.option("--erasure", is_flag=True, help="Standing approval: any retrain after an erasure that passed the gate.")
@click.option("--dry-run", is_flag=True, help="Show what would be signed.")
def approve(reference: str, environment: str, reason: str, person: str | None, *, erasure: bool, dry_run: bool) -> None:
    """Sign an approval of REFERENCE (PRODUCT@NUMBER or PRODUCT@ALIAS) for an environment, with your own key."""
    from mlops.cli.deploying import open_site  # loads SQL and pydantic
    from mlops.deploy.environment import load_environment
    from mlops.deploy.promoting import approve as sign
    from mlops.deploy.promotion_facts import find_release
    from mlops.deploy.roles import load_roles
    from mlops.provenance.keys import MACHINE, load_key

    site = open_site()
    rules = load_environment(site.places, environment)
    name = person or only_person(site.places.keys_folder)
    if name == MACHINE:
        raise ProvenanceError("a machine cannot approve", hint="name a person's key, see `mlops keys list`")
    key = load_key(site.places.keys_folder, name)
    if dry_run:
        with site.ledger.read() as connection:
            release = find_release(connection, reference)
        click.echo(
            f"would sign as {name} ({key.public}): {release.product}@{release.number}, image {release.image}, "
            f"gate result {release.gate}, for {environment}"
        )
        return
    approval = sign(site, rules, reference, key=key, reason=reason, purpose="erasure" if erasure else "promotion")
    kind = "retrains after erasures of " if erasure else ""
    click.echo(f"{name} approved {kind}{approval.product}@{approval.number} for {environment} ({approval.approval_id})")
    if load_roles(site.places).person_of_key(key.public) is None:
        hint = f"mlops keys init --person {name}"
        click.echo(f"note: it does not count until deploy/roles.yaml gives this key to a person: {hint}", err=True)
    click.echo(f"next: mlops promote {approval.product}@{approval.number} --to {environment} --dry-run")


def only_person(folder: Path) -> str:
    """The one person whose key lies here.

    Raises:
        ProvenanceError: There is none, or several.
    """
    from mlops.provenance.keys import MACHINE

    people = sorted(path.stem for path in folder.glob("*.pem") if path.stem != MACHINE and path.name[0] != ".")
    if len(people) == 1:
        return people[0]
    if not people:
        raise ProvenanceError("no person's key lies on this machine", hint="mlops keys init --person NAME")
    raise ProvenanceError(f"keys of several people lie here: {', '.join(people)}", hint="say whose with --key NAME")
