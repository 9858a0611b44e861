"""`mlops rebuild REF --check`: make a release again from its attestations and compare digests."""

from __future__ import annotations

import click

from mlops.cli.rendering import emit_json, render_table
from mlops.errors import EXIT_REFUSED


@click.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--check", "is_check", is_flag=True, required=True, help="Compare with what is recorded; changes nothing."
)
@click.option("--keep", "is_kept", is_flag=True, help="Leave the clean place for a look.")
@click.option("--dry-run", is_flag=True, help="Show what would be rebuilt from what.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def rebuild(reference: str, *, is_check: bool, is_kept: bool, dry_run: bool, as_json: bool) -> None:
    """Rebuild model and image of REF in a clean clone and name every digest that differs; exit 1 if one does.

    One trial is trained again, and its budget pays for it. REF is written as for `mlops trace`.
    """
    from mlops.overview.rebuild import find_plan, rebuild_release  # here: --help needs none of it
    from mlops.project.opening import open_project
    from mlops.provenance.reference import parse_reference

    assert is_check
    project = open_project()
    plan = find_plan(project, parse_reference(reference))
    if dry_run:
        emit_json(plan.to_json())
        return
    if plan.is_dirty:
        click.echo("the release was made with uncommitted files: its commit alone may not give it", err=True)
    done = rebuild_release(project, plan, is_kept=is_kept, say=lambda line: click.echo(line, err=True))
    if as_json:
        emit_json(
            {
                "is_equal": not done.different,
                "step_id": done.step_id,
                "stray_packages": list(done.strays),
                "digests": [{**vars(it), "is_equal": it.is_equal} for it in done.comparisons],
            }
        )
    else:
        rows = [("" if it.is_equal else "DIFFERS", it.name, it.recorded, it.rebuilt) for it in done.comparisons]
        click.echo(render_table(("", "what", "recorded", "rebuilt"), rows))
        for line in done.strays:
            click.echo(f"another package version than locked: {line}")
        told = ", ".join(it.name for it in done.different)
        click.echo(f"{len(done.different)} differ: {told}" if done.different else "every digest came out the same")
    if done.different:
        raise click.exceptions.Exit(EXIT_REFUSED)
