"""`mlops status`: everything that matters, on one screen."""

from __future__ import annotations

import click

from mlops.cli.rendering import emit_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(*, as_json: bool) -> None:
    """Products, environments, gates, budgets, sweeps, what waits for whom, what stands open, and upkeep."""
    from mlops.budgets.opening import settle_expired
    from mlops.cli.standing import load_open_matters
    from mlops.overview.status import load_status  # here: --help needs none of it
    from mlops.overview.status_text import render_status
    from mlops.project.opening import open_project

    project = open_project()
    settle_expired(project.ledger, project.clock, project.ids)
    found = load_status(project, load_open_matters(project))
    if as_json:
        emit_json(found.to_json())
    else:
        click.echo(render_status(found))
