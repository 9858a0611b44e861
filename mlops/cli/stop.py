"""`mlops stop`: end the local Ray of this project, clusters of sweeps whose driver died, and images of killed probes.

Leaves to others: how (mlops/training/ray_cluster, mlops/training/ray_ephemeral, mlops/serving/probe_scratch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlops.project.opening import Project


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be stopped.")
def stop(*, dry_run: bool) -> None:
    """Stop the local Ray that earlier commands started, and what killed ones left; its sweeps can be resumed."""
    from mlops.project.opening import open_project  # heavy: SQLAlchemy
    from mlops.training.ray_cluster import find_local, stop_local

    project = open_project()
    places = project.places
    found = find_local(places)
    if found is None:
        click.echo("no local Ray is running")
    elif dry_run:
        click.echo(f"would stop Ray at {found.address} (process {found.pid})")
    else:
        stop_local(places)
        click.echo(f"stopped Ray at {found.address}")
    _stop_orphans(project, dry_run=dry_run)
    _stop_probes(project, dry_run=dry_run)


def _stop_orphans(project: Project, *, dry_run: bool) -> None:
    from mlops.budgets.opening import open_lease_queue
    from mlops.training.ray_ephemeral import CommandStarter, find_orphans, stop_orphans

    places, clock = project.places, project.clock
    orphans = find_orphans(places, clock=clock)
    if dry_run:
        for record in orphans:
            click.echo(f"would end the cluster {record.name}, whose driver is dead")
    elif orphans:  # only then are the budgets needed
        leases = open_lease_queue(places, project.ledger, clock, project.ids)
        stop_orphans(places, leases=leases, starter=CommandStarter(), clock=clock, say=click.echo)


def _stop_probes(project: Project, *, dry_run: bool) -> None:
    from mlops.deploy.runtime_podman import PodmanRuntime
    from mlops.deploy.runtimes import list_runtimes
    from mlops.serving.probe_scratch import find_left_over, stop_left_over

    for runtime in list_runtimes(project.places.serving_state):
        if dry_run:
            for instance in find_left_over(runtime):
                click.echo(f"would stop {instance.name} on {runtime.name}, whose command is dead")
            continue
        for name in stop_left_over(runtime):
            click.echo(f"stopped {name} on {runtime.name}, whose command was dead")
        if isinstance(runtime, PodmanRuntime):
            runtime.release_store()
