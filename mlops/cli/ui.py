"""`mlops ui`: open the MLflow UI. Leaves to others: starting it (mlops/registry/mlflow_ui.py)."""

from __future__ import annotations

import os
import signal
import sys

import click


@click.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(0, 65_535), help="0 takes a free one.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def ui(*, port: int, no_browser: bool) -> None:
    """Open the MLflow UI on 127.0.0.1; Ctrl-C ends it."""
    from mlops.project.opening import open_project  # SQLAlchemy: 0.2 s
    from mlops.registry.mlflow_ui import start_ui

    click.echo("starting the MLflow UI (5 s) …", err=True)
    running = start_ui(open_project().places, port=port)
    click.echo(running.url)
    if not no_browser and _has_screen():
        click.launch(running.url)
    if running.process is None:
        return
    click.echo("Ctrl-C ends it", err=True)
    for number in (signal.SIGTERM, signal.SIGHUP):  # else the server would outlive a closed terminal
        signal.signal(number, signal.default_int_handler)
    try:
        code = running.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        running.stop()
    raise click.exceptions.Exit(code)


def _has_screen() -> bool:
    """On a machine without one, what opens browsers complains of each that is not there."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
