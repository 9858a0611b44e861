"""`mlops metrics`: the status for a monitoring system, printed. Leaves to others: what is measured (mlops/overview)."""

from __future__ import annotations

import click


@click.command()
def metrics() -> None:
    """Print budgets, sweeps, gate, environments, incidents and erasure deadlines as Prometheus text; nothing listens.

    For a node exporter: mlops metrics > DIR/mlops.prom.tmp && mv DIR/mlops.prom.tmp DIR/mlops.prom
    """
    from mlops.cli.standing import load_open_matters
    from mlops.overview.metrics import render_metrics  # here: --help needs none of it
    from mlops.overview.status import load_status
    from mlops.project.opening import open_project

    project = open_project()
    click.echo(render_metrics(load_status(project, load_open_matters(project))), nl=False)
