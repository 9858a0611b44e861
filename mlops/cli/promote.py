"""`mlops promote`: move an environment to a version, on evidence. Leaves to others: the decision (mlops/deploy)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mlops.cli.rendering import emit_json, refuse
from mlops.errors import Refusal

if TYPE_CHECKING:
    from mlops.deploy.promoting import PromotionResult


@click.command()
@click.argument("reference")
@click.option("--to", "environment", required=True, help="Environment to move.")
@click.option("--share", type=click.IntRange(1, 100), default=100, show_default=True, help="Percent of its traffic.")
@click.option("--dry-run", is_flag=True, help="Show the checklist only; exit 1 when a rule is not kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the checklist as JSON.")
def promote(reference: str, environment: str, share: int, *, dry_run: bool, as_json: bool) -> None:
    """Move an environment to REFERENCE (PRODUCT@NUMBER or PRODUCT@ALIAS), or refuse with every reason."""
    from mlops.cli.deploying import open_site  # loads SQL and pydantic
    from mlops.deploy.environment import load_environment
    from mlops.deploy.promoting import promote as move

    site = open_site()
    rules = load_environment(site.places, environment)
    result = move(site, rules, reference, share=share, is_dry_run=dry_run)
    if isinstance(result, Refusal):
        refuse(result, what=f"{reference} may not enter {environment}")
    if as_json:
        emit_json(_to_json(result, environment=environment))
    else:
        _print_checklist(result)
    if result.checklist.refusal is not None:
        refuse(result.checklist.refusal, what=f"{reference} may not enter {environment}")
    if as_json or dry_run:
        return
    if result.written is None:
        click.echo(f"{environment} is desired to serve {reference} already")
    else:
        click.echo(f"desired state of {environment} is commit {(result.written.commit_hash or '')[:12]}")
    click.echo(f"next: mlops deploy reconcile {environment}   (or leave it to a running --watch)")


def _print_checklist(result: PromotionResult) -> None:
    click.echo(f"{result.release.product}@{result.release.number}  image {result.release.image}")
    for item in result.checklist.items:
        click.echo(f"  [{'x' if item.is_kept else ' '}] {item.text}")
    for consumer in result.release_set.consumers:
        click.echo(f"  pins {consumer.service} {consumer.release}")


def _to_json(result: PromotionResult, *, environment: str) -> dict[str, object]:
    refusal = result.checklist.refusal
    return {
        "environment": environment,
        "release": asdict(result.release),
        "checklist": [asdict(item) for item in result.checklist.items],
        "approvers": list(result.checklist.approvers),
        "release_set": asdict(result.release_set),
        "is_allowed": refusal is None,
        "commit": result.written.commit_hash if result.written else None,
    }
