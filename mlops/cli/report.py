"""`mlops report`: one page about a product that anybody can read. Leaves to others: all facts (mlops/overview)."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("product")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; default .mlops/reports/PRODUCT.html.",
)
def report(product: str, output: Path | None) -> None:
    """Write what serves, why it was allowed, what changed, who is affected and what is open, as one HTML page."""
    from mlops.cli.standing import load_open_matters
    from mlops.files import write_atomically
    from mlops.overview.report import load_report  # here: --help needs none of it
    from mlops.overview.report_page import render_report_page
    from mlops.project.opening import open_project

    project = open_project()
    facts = load_report(project, project.require_product(product), load_open_matters(project))
    path = output or project.places.state / "reports" / f"{product}.html"
    write_atomically(path, render_report_page(facts))
    click.echo(f"wrote {path}; it needs no network: open it, send it or print it")
