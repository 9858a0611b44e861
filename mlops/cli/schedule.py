"""`mlops schedule`: the cron lines, systemd timers and CI workflow for what runs by itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from mlops.cli.rendering import emit_json


@click.command()
@click.option("--form", type=click.Choice(["cron", "systemd", "ci"]), help="Only this form [default: all].")
@click.option("--json", "as_json", is_flag=True, help="Print the jobs as JSON.")
def schedule(*, form: str | None, as_json: bool) -> None:
    """Print what should run by itself; nothing is installed."""
    from mlops.datasets.recipe import list_recipes
    from mlops.overview.schedule import FORMS, Surroundings, list_jobs  # here: --help needs none of it
    from mlops.places import Places, find_root

    places = Places(find_root(Path.cwd()))
    jobs = list_jobs(places.products(), list_recipes(places))
    if as_json:
        emit_json([asdict(job) for job in jobs])
        return
    where = Surroundings(places.root, Path(sys.executable).parent / "mlops")
    for name in [form] if form else list(FORMS):
        click.echo(FORMS[name](jobs, where))
        click.echo()
