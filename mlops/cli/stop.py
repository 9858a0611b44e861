"""`mlops stop`: end the local Ray of this project. Leaves to others: how (mlops/training/ray_cluster)."""

from __future__ import annotations

import click


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be stopped.")
def stop(*, dry_run: bool) -> None:
    """Stop the local Ray that earlier commands started; sweeps that run on it can be resumed."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.training.ray_cluster import find_local, stop_local

    places = open_project().places
    found = find_local(places)
    if found is None:
        click.echo("no local Ray is running")
    elif dry_run:
        click.echo(f"would stop Ray at {found.address} (process {found.pid})")
    else:
        stop_local(places)
        click.echo(f"stopped Ray at {found.address}")
