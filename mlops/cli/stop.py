"""`mlops stop`: end the local Ray of this project, and clusters of sweeps whose driver died.

Leaves to others: how (mlops/training/ray_cluster, mlops/training/ray_ephemeral).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlops.project.opening import Project


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be stopped.")
def stop(*, dry_run: bool) -> None:
    """Stop the local Ray that earlier commands started; sweeps that run on it can be resumed."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.training.ray_cluster import find_local, stop_local

    project = open_project()
    places = project.places
    if not dry_run:
        _stop_orphans(project)
    found = find_local(places)
    if found is None:
        click.echo("no local Ray is running")
    elif dry_run:
        click.echo(f"would stop Ray at {found.address} (process {found.pid})")
    else:
        stop_local(places)
        click.echo(f"stopped Ray at {found.address}")


def _stop_orphans(project: Project) -> None:
    from mlops.budgets.opening import open_lease_queue
    from mlops.training.ray_ephemeral import CommandStarter, stop_orphans

    leases = open_lease_queue(project.places, project.ledger, project.clock, project.ids)
    stop_orphans(project.places, leases=leases, starter=CommandStarter(), clock=project.clock, say=click.echo)
